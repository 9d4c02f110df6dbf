"""Answers and their evidence for the eye: images, kept patches, scores, latencies over time.

``events`` says what there is to show, ``bag`` reads it from a recorded result, ``rerun_log`` shows
it in the rerun viewer. The live node's topics are read by the ROS package.
"""

"""Offline replay: a recorded bag and a list of questions in, the live node's messages out.

    recording -> frames -> answering -> messages -> result bag, report; comparing two result bags

Runs without ROS. Every frame (or every n-th) is answered about however long it takes, so that the
same bag, questions and model give the same bytes. Bags are read and written with `rosbags`, which
comes with the extra ``bags`` and is imported only when a bag is opened.
"""

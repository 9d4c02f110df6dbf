"""VQAv2, GQA and COCO captions: readers of the official files, and the official metrics.

One module per benchmark with ``read_items`` (what to ask), ``read_results`` and ``score``; the
formats are those that the benchmarks publish and that their servers accept. ``run`` answers the
questions with a pipeline. For other benchmarks see ``edge_atp.evaluation.lmms_eval_plugin``.
"""

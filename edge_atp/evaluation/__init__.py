"""What does pruning cost? Labelled data sets, metrics, sweeps over methods and budgets, reports.

    data set -> conditions -> answers (one encoding per image) -> records -> summary -> report

``dataset`` reads labelled images, ``conditions`` disturbs them, ``sweep`` asks every question
with every method and budget and appends ``records``, ``summary`` turns records into numbers with
confidence intervals, ``tables`` and ``plots`` show them. The readers of public benchmarks are in
``benchmarks``. Needs no torch; plots need the extra ``evaluation``.
"""

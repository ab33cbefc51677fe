"""Evaluators: each is built once and yields (name, number) pairs from `run(params)`, on all hosts alike.

What `run` yields has no prefix: the numbers of the evaluator that the config calls `twemoji` are written as
`eval/twemoji/top1` and so on by whoever runs it.

A new one is a class in a file of its own (`coca.evals.evaluator.Evaluator`), a line of `coca.evals.build.KINDS` and a
choice of `coca.config.Eval.kind`.
"""

"""Training, scoring and checking on Ray: Ray Data reads, actors compute, a controller leads.

`run` trains; `scoring` predicts and evaluates; `doctor` checks data. The rest are their parts.
"""

"""Analyse experiments: effects from the served log, and offline estimates.

Where the interval of an effect comes from: `contrast` chooses the method by how many viewers have
any of the metric. `statistics.compare` computes the interval of one look, and `confidence_sequence`
that of any look. Where few viewers have any, `few_events.shares` computes both.
`verdict.deciding` says which of the two decides.

It imports `audit`, `search`, `drafting`, `fit`, `evaluation`, `examination`, `data`, `network`,
`world`, `terminal` and `serve`.
"""

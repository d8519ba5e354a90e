"""Model rollout: which version ranks, trials of new versions, rollback and their history.

May import `config` and the layers below it.
"""

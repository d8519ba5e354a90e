"""Feature kinds: a module has one or more, with the kind of state that they need.

`serve.features.registry` finds the kinds of every module here by itself.
"""

"""The one writer: from records to state, store and log. Imports `rollout` and below."""

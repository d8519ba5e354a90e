"""What a model is worth: measures, intervals, slices, importance, and the report of them."""

"""Run modules without side effects: copies that share weights, runs in float64 or on shapes alone, and observers."""

"""Compare methods over seeds: plan, execution, results, tables, figures and the demo."""

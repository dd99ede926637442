"""What reports show: plots, contact sheets, tables, the model card."""

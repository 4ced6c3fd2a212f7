"""What is wrong with photographs and labels: arrays and records in, tables out."""

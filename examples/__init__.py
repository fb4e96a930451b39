"""Programs that show what asyncpool is for, each doing its work for real."""

"""Programs that show what asyncpool is for. Each of them does real work; README.md in this folder lists them."""

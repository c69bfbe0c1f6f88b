"""How often is `check` wrong? A bank of (posterior, fit) pairs with known truth, and k-hat alone beside it."""

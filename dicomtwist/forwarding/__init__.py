"""Store and forward: rules, coercion, de-identification."""

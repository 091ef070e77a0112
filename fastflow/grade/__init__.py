"""`fastflow grade`: verdicts on responses that lie in a file."""

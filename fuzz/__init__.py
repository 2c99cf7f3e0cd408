"""
Coverage-guided fuzzing of all that reads what a peer sends: ``make fuzz``, or ``python -m fuzz TARGET``.

``targets`` says what is fed with arbitrary bytes and what has to hold then, ``seeds`` records the conversations to begin
with. What is found becomes a test; ``tests/test_fuzz.py`` runs each target over its seeds.
"""

"""
Coverage-guided fuzzing of all code that reads bytes from a peer: ``make fuzz``, or ``python -m fuzz TARGET``.

``targets`` has the functions that are fed with arbitrary bytes and the assertions that have to hold. ``seeds`` records the
conversations from which the fuzzer starts. Each failure that it finds becomes a test; ``tests/test_fuzz.py`` runs each target
over its seeds.
"""

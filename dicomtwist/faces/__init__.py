"""The common parts of :mod:`dicomtwist.asyncio` and :mod:`dicomtwist.sync`."""

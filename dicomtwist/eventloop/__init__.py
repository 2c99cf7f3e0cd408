"""Twisted's reactor and asyncio's event loop: coroutines that await both, the reactor on a loop, the reactor in a thread."""

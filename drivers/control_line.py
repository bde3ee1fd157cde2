"""Commands to simulators: a JSON object a line on standard input, an answer a line on standard output."""

import asyncio
import json
import os
import stat
import sys
from collections.abc import Callable, Mapping


def say(document: Mapping[str, object]) -> None:
    """One line, at once."""
    print(json.dumps(document), flush=True)


async def obey_lines(answer: Callable[[object], Mapping[str, object]]) -> None:
    """Say what `answer` gives for each request (None: not JSON) until standard input ends.

    Where that is no pipe, socket or terminal there are no commands, and this waits until it is cancelled.
    """
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or sys.stdin.isatty()):
        await asyncio.Event().wait()
    reader = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        while line := await reader.readline():
            try:
                request = json.loads(line)
            except ValueError:
                request = None
            say(answer(request))
    finally:
        pipe.close()

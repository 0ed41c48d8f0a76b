"""An asyncssh server on a free port of 127.0.0.1: asyncssh_server.py HOST_KEY AUTHORIZED_KEYS.

Prints its port, then serves until its stdin ends. It knows three commands: `cat FILE` gives the file, `cat` gives back
what comes, `sha256sum` hashes what comes. Keys are exchanged anew after each MiB sent.
"""

import asyncio
import hashlib
import logging
import sys

import asyncssh

PIECE = 32768
MIB = 1 << 20


async def serve(process):
    words = process.command.split()
    if words == ["cat"]:
        while piece := await process.stdin.read(PIECE):
            process.stdout.write(piece)
            await process.stdout.drain()
    elif words[:1] == ["cat"]:
        with open(words[1], "rb") as file:
            while piece := file.read(PIECE):
                process.stdout.write(piece)
                await process.stdout.drain()
    elif words == ["sha256sum"]:
        digest = hashlib.sha256()
        while piece := await process.stdin.read(PIECE):
            digest.update(piece)
        process.stdout.write(f"{digest.hexdigest()}  -\n".encode())
    else:
        process.exit(127)
        return
    process.exit(0)


async def main(host_key, authorized_keys):
    # What the log says at debug level 1 tells each key exchange.
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    listener = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[host_key],
        authorized_client_keys=authorized_keys,
        process_factory=serve,
        encoding=None,
        rekey_bytes=MIB,
    )
    print(listener.get_port(), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main(*sys.argv[1:]))

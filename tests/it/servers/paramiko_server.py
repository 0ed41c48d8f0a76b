"""A paramiko server on a free port of 127.0.0.1: paramiko_server.py HOST_KEY AUTHORIZED_KEYS.

Prints its port, then serves until its stdin ends. It knows three commands: `cat FILE` gives the file, `cat` gives back
what comes, `sha256sum` hashes what comes. Keys are exchanged anew after each MiB sent or received.
"""

import hashlib
import logging
import os
import socket
import sys
import threading

import paramiko
from paramiko.common import MSG_CHANNEL_REQUEST, MSG_GLOBAL_REQUEST

PIECE = 32768
MIB = 1 << 20


def pieces(channel):
    while piece := channel.recv(PIECE):
        yield piece


def run(channel, words):
    if words == ["cat"]:
        for piece in pieces(channel):
            channel.sendall(piece)
    elif words[:1] == ["cat"]:
        with open(words[1], "rb") as file:
            while piece := file.read(PIECE):
                channel.sendall(piece)
    elif words == ["sha256sum"]:
        digest = hashlib.sha256()
        for piece in pieces(channel):
            digest.update(piece)
        channel.sendall(f"{digest.hexdigest()}  -\n".encode())
    else:
        return 127
    return 0


class Transport(paramiko.Transport):
    """One that keeps to RFC 4253 section 7.1 while keys are exchanged, and gets to their end.

    paramiko answers from the thread that reads. When its own KEXINIT is on its way to a client that does not know yet,
    it answers an open at once, which is not allowed; and the answer to a request, an EOF or a CLOSE waits for the end of
    the exchange, which is for the waiting thread to bring about (paramiko's issue 822). Here all such answers are kept
    until there are new keys.
    """

    def __init__(self, connection):
        self.kept = []
        self.to_start = []
        super().__init__(connection)

    def _send_message(self, data):
        if self.is_answer() and not self.clear_to_send.is_set() and data.asbytes()[0] >= MSG_GLOBAL_REQUEST:
            self.kept.append(data)
        else:
            super()._send_message(data)

    def _send_user_message(self, data):
        if self.is_answer():
            self._send_message(data)
        else:
            super()._send_user_message(data)

    def _parse_newkeys(self, m):
        # Before anybody else may send again: ours are in use already.
        kept, self.kept = self.kept, []
        for data in kept:
            super()._send_message(data)
        super()._parse_newkeys(m)

    def is_answer(self):
        return threading.current_thread() is self

    def request(channel, m):
        """Starts the command when its request has been answered, as the client expects it."""
        channel._handle_request(m)
        transport = channel.get_transport()
        while transport.to_start:
            threading.Thread(target=transport.to_start.pop(), daemon=True).start()

    _channel_handler_table = {**paramiko.Transport._channel_handler_table, MSG_CHANNEL_REQUEST: request}


class Server(paramiko.ServerInterface):
    def __init__(self, authorized):
        self.authorized = authorized

    def check_auth_publickey(self, username, key):
        return paramiko.AUTH_SUCCESSFUL if key.get_base64() in self.authorized else paramiko.AUTH_FAILED

    def get_allowed_auths(self, username):
        return "publickey"

    def check_channel_request(self, kind, chanid):
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel, command):
        words = command.decode().split()
        channel.get_transport().to_start.append(lambda: self.serve(channel, words))
        return True

    def serve(self, channel, words):
        channel.send_exit_status(run(channel, words))
        channel.shutdown_write()
        channel.close()


def accept(listener, host_key, authorized):
    while True:
        connection, _ = listener.accept()
        transport = Transport(connection)
        transport.add_server_key(host_key)
        # An event in place of waiting for the handshake: the next client must not wait for this one.
        transport.start_server(threading.Event(), Server(authorized))


def main(host_key, authorized_keys):
    # What the log says at debug level tells each key exchange.
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    paramiko.packet.Packetizer.REKEY_BYTES = MIB
    with open(authorized_keys, encoding="ascii") as lines:
        authorized = {line.split()[1] for line in lines}
    listener = socket.create_server(("127.0.0.1", 0))
    host_key = paramiko.Ed25519Key.from_private_key_file(host_key)
    threading.Thread(target=accept, args=(listener, host_key, authorized), daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()
    # Not by way of the threads, some of which may be in the middle of something.
    os._exit(0)


main(*sys.argv[1:])

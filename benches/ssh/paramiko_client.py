"""paramiko in a process of its own, asked line by line; see worker.rs."""

import resource
import sys
import threading
import time

import paramiko

HOST = "127.0.0.1"
BUFFER = 256 * 1024


class Client:
    def __init__(self, user, identity, directory):
        self.user, self.identity, self.directory = user, identity, directory
        self.client = None
        self.most_threads = 1

    def open(self, port):
        client = paramiko.SSHClient()
        client.load_host_keys(f"{self.directory}/known_hosts.{port}")
        client.connect(HOST, port=int(port), username=self.user, key_filename=self.identity,
                       look_for_keys=False, allow_agent=False)
        return client

    def login(self, port):
        began = time.monotonic()
        client = self.open(port)
        run_true(client)
        took = time.monotonic() - began
        client.close()
        return took

    def connect(self, port, _cipher):
        began = time.monotonic()
        self.client = self.open(port)
        return time.monotonic() - began

    def sequence(self, n):
        began = time.monotonic()
        for _ in range(int(n)):
            run_true(self.client)
        return time.monotonic() - began

    def burst(self, n):
        return self.at_once([lambda: run_true(self.client)] * int(n))

    def download(self, total, channels):
        each = int(total) // int(channels)
        command = f"echo ready; read line; exec head -c {each} /dev/zero"

        def read(stdin, stdout):
            stdin.channel.sendall(b"\n")
            got = 0
            while chunk := stdout.channel.recv(BUFFER):
                got += len(chunk)
            assert got == each, got
            assert stdout.channel.recv_exit_status() == 0

        ready = [self.start(command) for _ in range(int(channels))]
        return self.at_once([lambda ends=ends: read(*ends) for ends in ready])

    def upload(self, total):
        stdin, stdout = self.start("echo ready; exec cat >/dev/null")
        began = time.monotonic()
        zeros, left = bytes(BUFFER), int(total)
        while left > 0:
            stdin.channel.sendall(zeros[:left])
            left -= min(left, BUFFER)
        stdin.channel.shutdown_write()
        assert stdout.channel.recv_exit_status() == 0
        return time.monotonic() - began

    def start(self, command):
        stdin, stdout, _ = self.client.exec_command(command)
        assert stdout.readline() == "ready\n"
        return stdin, stdout

    def at_once(self, runs):
        failed = []

        def guarded(run):
            try:
                run()
                self.most_threads = max(self.most_threads, threading.active_count())
            except Exception as error:
                failed.append(error)

        began = time.monotonic()
        threads = [threading.Thread(target=guarded, args=(run,)) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        return time.monotonic() - began


def run_true(client):
    _, stdout, _ = client.exec_command("true")
    stdout.read()
    assert stdout.channel.recv_exit_status() == 0


def main():
    client = Client(*sys.argv[1:4])
    for line in sys.stdin:
        task, *arguments = line.split()
        before = time.process_time()
        try:
            seconds = getattr(client, task)(*arguments)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print("ok", seconds, time.process_time() - before, peak, client.most_threads, flush=True)
        except Exception as error:
            print("error", repr(error), flush=True)


main()

# The tutorial's second program, in Python 3.
import sys

import paramiko

class AllowAnythingPolicy(paramiko.MissingHostKeyPolicy):
    def missing_host_key(self, client, hostname, key):
        return

client = paramiko.SSHClient()
client.set_missing_host_key_policy(AllowAnythingPolicy())
client.connect(sys.argv[1], int(sys.argv[2]), username=sys.argv[3])  # password='')

for command in 'echo "Hello, world!"', 'uname', 'uptime':
    stdin, stdout, stderr = client.exec_command(command)
    stdin.close()
    print(repr(stdout.read()))
    stdout.close()
    stderr.close()

client.close()

# SPDX-License-Identifier: Apache-2.0
"""Connection of Ansible to a machine of the tests: a process in its namespaces, under its root."""

import os
import shutil
import subprocess

from ansible.errors import AnsibleError
from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
    name: machine
    short_description: a machine of the tests
    description: runs commands in the namespaces of a process
    options:
      machine_pid:
        description: the first process of the machine
        vars: [{name: machine_pid}]
      machine_root:
        description: its root, as that process sees it
        vars: [{name: machine_root}]
"""


class Connection(ConnectionBase):
    transport = "machine"
    has_pipelining = True

    def _connect(self):
        self._connected = True
        return self

    def exec_command(self, cmd, in_data=None, sudoable=True):
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        argv = ["nsenter", "-t", str(self.get_option("machine_pid")), "-m", "-p", "-n", "-i", "--",
                "chroot", self.get_option("machine_root"), "/bin/sh", "-c", cmd]
        env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
        p = subprocess.run(argv, input=in_data, stdin=None if in_data else subprocess.DEVNULL, capture_output=True, env=env)
        return p.returncode, p.stdout, p.stderr

    def _path(self, name):
        root = "/proc/%s/root%s" % (self.get_option("machine_pid"), self.get_option("machine_root"))
        return root + os.path.normpath(os.path.join("/", name))

    def put_file(self, in_path, out_path):
        try:
            shutil.copyfile(in_path, self._path(out_path))
        except OSError as e:
            raise AnsibleError("put %s: %s" % (out_path, e))

    def fetch_file(self, in_path, out_path):
        try:
            shutil.copyfile(self._path(in_path), out_path)
        except OSError as e:
            raise AnsibleError("fetch %s: %s" % (in_path, e))

    def close(self):
        self._connected = False

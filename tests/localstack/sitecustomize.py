"""Mends moto's MAC addresses, which a format string spoils ("02:00:00:25502x:..."): no client that reads them as such
can use an answer that has one. Python imports this module at its start, when its directory is in PYTHONPATH."""

import importlib.util
import random
import sys


def random_mac_address():
    return "02:00:00:" + ":".join(f"{random.randint(0, 255):02x}" for _ in range(3))


class Mend:
    """Replaces the function as soon as its module is there, before others take it from there."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "moto.ec2.utils":
            return None
        sys.meta_path.remove(cls)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_mend(module):
            execute(module)
            module.random_mac_address = random_mac_address

        spec.loader.exec_module = execute_and_mend
        return spec


sys.meta_path.insert(0, Mend)

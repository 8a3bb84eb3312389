#!/usr/bin/env python3
"""Writes types.tsv from the answer of DescribeInstanceTypes that moto ships (Apache-2.0).

Usage: python3 generate.py > types.tsv   (in an environment with moto[ec2] installed)

To refresh the table, install a newer moto and run this again; tests.rs says what must not change.
"""

import gzip
import json
import pathlib
import sys

import moto.ec2

VERSION = moto.__version__
SOURCE = pathlib.Path(moto.ec2.__file__).parent / "resources" / "instance_types.json.gz"


def cards(network):
    """ENIs of each network card by index, the default card first: "3", "8,7", or "2x32" where all are equal."""
    if network["DefaultNetworkCardIndex"] != 0:
        sys.exit("a default network card other than 0: the table's format cannot say so")
    by_index = sorted(network["NetworkCards"], key=lambda card: card["NetworkCardIndex"])
    if [card["NetworkCardIndex"] for card in by_index] != list(range(len(by_index))):
        sys.exit("network cards are not numbered from 0 without a gap")
    counts = [card["MaximumNetworkInterfaces"] for card in by_index]
    if len(counts) > 1 and len(set(counts)) == 1:
        return f"{counts[0]}x{len(counts)}"
    return ",".join(map(str, counts))


def main():
    with gzip.open(SOURCE) as file:
        types = json.load(file)
    print(f"# DescribeInstanceTypes as of moto {VERSION} (Apache-2.0), by generate.py. Columns: type, ENIs of each")
    print("# network card, IPv4 addresses an ENI, IPv6 addresses an ENI, hypervisor (metal: none).")
    for name, answer in sorted(types.items()):
        hypervisor = "metal" if answer["BareMetal"] else answer["Hypervisor"]
        network = answer["NetworkInfo"]
        row = (
            name,
            cards(network),
            network["Ipv4AddressesPerInterface"],
            network["Ipv6AddressesPerInterface"],
            hypervisor,
        )
        print(*row, sep="\t")


if __name__ == "__main__":
    main()

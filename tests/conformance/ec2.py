"""Checks an EC2 endpoint by boto3 and the AWS CLI, as their users would use them.

    ec2.py EC2_URL IMDS_URL AWS_CLI

Every check stands in the order in which it runs; later ones use what earlier ones made. The last line says how many
passed and failed, and the exit status is non-zero when one failed.
"""

import datetime
import ipaddress
import json
import os
import subprocess
import sys
import traceback
import urllib.request

for name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[name]
os.environ.update(
    AWS_ACCESS_KEY_ID="AKIAIOSFODNN7EXAMPLE",
    AWS_SECRET_ACCESS_KEY="no-secret",
    AWS_DEFAULT_REGION="us-east-1",
    AWS_CONFIG_FILE=os.devnull,
    AWS_SHARED_CREDENTIALS_FILE=os.devnull,
    AWS_EC2_METADATA_DISABLED="true",
    AWS_MAX_ATTEMPTS="1",
    AWS_PAGER="",
)

import boto3  # noqa: E402
from botocore.config import Config  # noqa: E402
from botocore.exceptions import ClientError  # noqa: E402
from botocore.utils import IMDSFetcher, InstanceMetadataFetcher, InstanceMetadataRegionFetcher  # noqa: E402

URL, IMDS, AWS = sys.argv[1:4]
QUICK = {"Delay": 0, "MaxAttempts": 20}


def client(**config):
    config = {"retries": {"total_max_attempts": 1}, "connect_timeout": 5, "read_timeout": 10, **config}
    return boto3.client("ec2", endpoint_url=URL, config=Config(**config))


ec2 = client()
made = {}
checks = []


def check(function):
    checks.append(function)
    return function


def equal(found, expected):
    assert found == expected, f"expected {expected!r}, found {found!r}"


def refused(code, call, message=None, status=400, **parameters):
    try:
        answer = call(**parameters)
    except ClientError as error:
        equal(error.response["Error"]["Code"], code)
        equal(error.response["ResponseMetadata"]["HTTPStatusCode"], status)
        if message is not None:
            assert message in error.response["Error"]["Message"], error
        return error
    raise AssertionError(f"expected {code}, found {answer!r}")


def admin(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{URL}/_vpcsim/{path}", data, method=method)) as answer:
        text = answer.read()
        return json.loads(text) if answer.headers["Content-Type"] == "application/json" else text


def tags(resource):
    return {tag["Key"]: tag["Value"] for tag in resource.get("Tags", resource.get("TagSet", []))}


def specification(kind, **values):
    return [{"ResourceType": kind, "Tags": [{"Key": key, "Value": value} for key, value in values.items()]}]


def interface(eni):
    return ec2.describe_network_interfaces(NetworkInterfaceIds=[eni])["NetworkInterfaces"][0]


def secondaries(eni):
    return {a["PrivateIpAddress"] for a in interface(eni)["PrivateIpAddresses"] if not a["Primary"]}


def available(subnet):
    return ec2.describe_subnets(SubnetIds=[subnet])["Subnets"][0]["AvailableIpAddressCount"]


def new_eni(subnet="main", **parameters):
    return ec2.create_network_interface(SubnetId=made[subnet], **parameters)["NetworkInterface"]["NetworkInterfaceId"]


def cli(*arguments, fails=None):
    run = subprocess.run(
        [AWS, "--endpoint-url", URL, "--output", "json", "ec2", *arguments], capture_output=True, text=True, timeout=60
    )
    if fails is not None:
        assert run.returncode != 0 and fails in run.stderr, (run.returncode, run.stdout, run.stderr)
        return None
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout) if run.stdout.strip() else None


@check
def a_vpc_with_subnets():
    vpc = ec2.create_vpc(
        CidrBlock="10.0.0.0/16",
        AmazonProvidedIpv6CidrBlock=True,
        TagSpecifications=specification("vpc", Name="a & b <c>"),
    )["Vpc"]
    equal(vpc["CidrBlock"], "10.0.0.0/16")
    equal(tags(vpc), {"Name": "a & b <c>"})
    made["vpc"] = vpc["VpcId"]
    ec2.get_waiter("vpc_available").wait(VpcIds=[made["vpc"]], WaiterConfig=QUICK)
    told = ec2.describe_vpcs(Filters=[{"Name": "tag:Name", "Values": ["a*"]}])["Vpcs"]
    equal([vpc["VpcId"] for vpc in told], [made["vpc"]])
    block = ipaddress.ip_network(told[0]["Ipv6CidrBlockAssociationSet"][0]["Ipv6CidrBlock"])
    equal(block.prefixlen, 56)
    made["ipv6"] = str(next(block.subnets(new_prefix=64)))
    for name, cidr, zone, ipv6 in [
        ("main", "10.0.0.0/24", "us-east-1a", made["ipv6"]),
        ("tiny", "10.0.1.0/28", "us-east-1a", None),
        ("other", "10.0.2.0/24", "us-east-1b", None),
    ]:
        extra = {} if ipv6 is None else {"Ipv6CidrBlock": ipv6}
        subnet = ec2.create_subnet(
            VpcId=made["vpc"], CidrBlock=cidr, AvailabilityZone=zone,
            TagSpecifications=specification("subnet", Name=name), **extra,
        )["Subnet"]
        equal(subnet["AvailabilityZone"], zone)
        made[name] = subnet["SubnetId"]
    equal(available(made["main"]), 251)
    equal(available(made["tiny"]), 11)
    found = ec2.describe_subnets(
        Filters=[{"Name": "vpc-id", "Values": [made["vpc"]]}, {"Name": "availability-zone", "Values": ["us-east-1b"]}]
    )["Subnets"]
    equal([subnet["SubnetId"] for subnet in found], [made["other"]])


@check
def vpcs_and_subnets_that_cannot_be():
    refused("InvalidVpc.Range", ec2.create_vpc, CidrBlock="10.0.0.0/8")
    refused("InvalidParameterValue", ec2.create_vpc, CidrBlock="ten")
    make = ec2.create_subnet
    refused("InvalidSubnet.Conflict", make, VpcId=made["vpc"], CidrBlock="10.0.0.0/25")
    refused("InvalidSubnet.Range", make, VpcId=made["vpc"], CidrBlock="10.1.0.0/24")
    refused("InvalidSubnet.Range", make, VpcId=made["vpc"], CidrBlock="10.0.9.0/29")
    refused("InvalidVpcID.NotFound", make, VpcId="vpc-00000000000000000", CidrBlock="10.0.9.0/24")
    refused("InvalidSubnetID.NotFound", ec2.describe_subnets, SubnetIds=["subnet-00000000000000000"])
    refused("InvalidParameterValue", ec2.describe_subnets, Filters=[{"Name": "no-such", "Values": ["x"]}])


@check
def instance_types():
    answer = ec2.describe_instance_types(InstanceTypes=["m5.large", "p5.48xlarge", "m4.large"])
    types = {entry["InstanceType"]: entry for entry in answer["InstanceTypes"]}
    network = types["m5.large"]["NetworkInfo"]
    equal((network["MaximumNetworkInterfaces"], network["Ipv4AddressesPerInterface"]), (3, 10))
    equal((types["m5.large"]["Hypervisor"], types["m4.large"]["Hypervisor"]), ("nitro", "xen"))
    network = types["p5.48xlarge"]["NetworkInfo"]
    equal((network["MaximumNetworkCards"], network["NetworkCards"][1]["MaximumNetworkInterfaces"]), (32, 2))
    refused("InvalidInstanceType", ec2.describe_instance_types, InstanceTypes=["m5.huge"])
    pages = ec2.get_paginator("describe_instance_types").paginate(PaginationConfig={"PageSize": 20})
    names = [entry["InstanceType"] for page in pages for entry in page["InstanceTypes"]]
    equal(len(names), len(set(names)))
    assert {"t3.medium", "c5.large", "r5.large", "m6i.large", "p4d.24xlarge"} <= set(names)


@check
def security_groups():
    group = ec2.create_security_group(GroupName="nodes", Description="of nodes", VpcId=made["vpc"])["GroupId"]
    made["group"] = group
    refused("InvalidGroup.Duplicate", ec2.create_security_group, GroupName="nodes", Description="x", VpcId=made["vpc"])
    rule = {
        "IpProtocol": "tcp", "FromPort": 80, "ToPort": 443,
        "IpRanges": [{"CidrIp": "10.0.0.0/8", "Description": "inside"}],
        "UserIdGroupPairs": [{"GroupId": group}],
    }
    equal(ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])["Return"], True)
    refused("InvalidPermission.Duplicate", ec2.authorize_security_group_ingress, GroupId=group, IpPermissions=[rule])
    everything = {"IpProtocol": "-1", "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}
    ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[everything])
    told = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["nodes"]}])["SecurityGroups"]
    equal([entry["GroupId"] for entry in told], [group])
    ingress = told[0]["IpPermissions"][0]
    equal((ingress["FromPort"], ingress["ToPort"], ingress["IpRanges"][0]["CidrIp"]), (80, 443, "10.0.0.0/8"))
    equal(ingress["UserIdGroupPairs"][0]["GroupId"], group)
    equal(len(told[0]["IpPermissionsEgress"]), 2)
    refused("InvalidGroup.NotFound", ec2.describe_security_groups, GroupIds=["sg-00000000000000000"])


@check
def instances():
    answer = ec2.run_instances(
        ImageId="ami-12345678", InstanceType="m5.large", MinCount=2, MaxCount=2, SubnetId=made["main"],
        SecurityGroupIds=[made["group"]], KeyName="key", UserData="#!/bin/true",
        TagSpecifications=specification("instance", role="node") + specification("network-interface", first="yes"),
    )
    ids = [instance["InstanceId"] for instance in answer["Instances"]]
    equal(len(set(ids)), 2)
    made["node"], made["node2"] = ids
    ec2.get_waiter("instance_running").wait(InstanceIds=ids, WaiterConfig=QUICK)
    told = ec2.describe_instances(Filters=[{"Name": "tag:role", "Values": ["node"]}])["Reservations"]
    equal([len(reservation["Instances"]) for reservation in told], [2])
    node = ec2.describe_instances(InstanceIds=[ids[0]])["Reservations"][0]["Instances"][0]
    equal((node["InstanceType"], node["State"]["Name"], node["SubnetId"]), ("m5.large", "running", made["main"]))
    primary = node["NetworkInterfaces"][0]
    equal((primary["Attachment"]["DeviceIndex"], primary["Attachment"]["DeleteOnTermination"]), (0, True))
    equal(primary["Groups"], [{"GroupId": made["group"], "GroupName": "nodes"}])
    equal(primary["PrivateIpAddress"], node["PrivateIpAddress"])
    made["primary"] = primary["NetworkInterfaceId"]
    equal(tags(interface(made["primary"])), {"first": "yes"})
    refused("VPCIdNotSpecified", ec2.run_instances, ImageId="ami-1", InstanceType="m5.large", MinCount=1, MaxCount=1)
    refused("InvalidInstanceID.NotFound", ec2.describe_instances, InstanceIds=["i-00000000000000000"])
    refused("InvalidInstanceID.Malformed", ec2.describe_instances, InstanceIds=["node"])


@check
def an_instance_with_its_interface_described():
    answer = ec2.run_instances(
        ImageId="ami-12345678", InstanceType="m5.xlarge", MinCount=1, MaxCount=1,
        NetworkInterfaces=[{
            "DeviceIndex": 0, "SubnetId": made["other"], "Groups": [made["group"]], "AssociatePublicIpAddress": True,
            "SecondaryPrivateIpAddressCount": 3, "DeleteOnTermination": True,
        }],
    )
    instance = answer["Instances"][0]
    made["public"] = instance["InstanceId"]
    eni = interface(instance["NetworkInterfaces"][0]["NetworkInterfaceId"])
    equal(len(eni["PrivateIpAddresses"]), 4)
    told = ec2.describe_instances(InstanceIds=[made["public"]])["Reservations"][0]["Instances"][0]
    equal(told["PublicIpAddress"], eni["Association"]["PublicIp"])


@check
def interfaces_are_made_and_attached():
    eni = new_eni(
        Description=f"aws-K8S-{made['node']}", Groups=[made["group"]], SecondaryPrivateIpAddressCount=9,
        TagSpecifications=specification("network-interface", **{"node.k8s.amazonaws.com/instance_id": made["node"]}),
    )
    made["eni"] = eni
    ec2.get_waiter("network_interface_available").wait(NetworkInterfaceIds=[eni], WaiterConfig=QUICK)
    equal(len(secondaries(eni)), 9)
    attachment = ec2.attach_network_interface(DeviceIndex=1, InstanceId=made["node"], NetworkInterfaceId=eni)
    equal(attachment["NetworkCardIndex"], 0)
    made["attachment"] = attachment["AttachmentId"]
    told = interface(eni)
    equal((told["Status"], told["Attachment"]["InstanceId"]), ("in-use", made["node"]))
    equal((told["Attachment"]["Status"], told["Attachment"]["DeleteOnTermination"]), ("attached", False))
    ec2.modify_network_interface_attribute(
        NetworkInterfaceId=eni, Attachment={"AttachmentId": made["attachment"], "DeleteOnTermination": True}
    )
    ec2.modify_network_interface_attribute(NetworkInterfaceId=eni, SourceDestCheck={"Value": False})
    ec2.modify_network_interface_attribute(NetworkInterfaceId=eni, Description={"Value": "changed"})
    default = ec2.describe_security_groups(
        Filters=[{"Name": "vpc-id", "Values": [made["vpc"]]}, {"Name": "group-name", "Values": ["default"]}]
    )["SecurityGroups"][0]["GroupId"]
    ec2.modify_network_interface_attribute(NetworkInterfaceId=eni, Groups=[default, made["group"]])
    told = interface(eni)
    equal((told["Description"], told["SourceDestCheck"]), ("changed", False))
    equal([group["GroupId"] for group in told["Groups"]], [default, made["group"]])
    equal(told["Attachment"]["DeleteOnTermination"], True)


@check
def an_instance_has_limits():
    attach = ec2.attach_network_interface
    spare = new_eni()
    taken = {"InstanceId": made["node"], "NetworkInterfaceId": spare}
    refused("InvalidParameterValue", attach, "already has an interface attached at device index '1'", DeviceIndex=1, **taken)
    refused("InvalidNetworkInterface.InUse", attach, DeviceIndex=2, InstanceId=made["node"], NetworkInterfaceId=made["eni"])
    attach(DeviceIndex=2, **taken)
    fourth = new_eni()
    refused(
        "AttachmentLimitExceeded", attach, "Interface count 4 exceeds the limit for m5.large",
        DeviceIndex=3, InstanceId=made["node"], NetworkInterfaceId=fourth,
    )
    refused("InvalidParameterValue", attach, DeviceIndex=1, NetworkCardIndex=1, InstanceId=made["node2"], NetworkInterfaceId=fourth)
    elsewhere = new_eni("other")
    refused("InvalidParameterCombination", attach, DeviceIndex=1, InstanceId=made["node2"], NetworkInterfaceId=elsewhere)
    refused("InvalidInstanceID.NotFound", attach, DeviceIndex=1, InstanceId="i-00000000000000000", NetworkInterfaceId=fourth)
    refused("InvalidNetworkInterfaceID.NotFound", attach, DeviceIndex=1, InstanceId=made["node2"], NetworkInterfaceId="eni-00000000000000000")


@check
def addresses_are_assigned():
    free = available(made["main"])
    answer = ec2.assign_private_ip_addresses(NetworkInterfaceId=made["primary"], SecondaryPrivateIpAddressCount=5)
    added = {entry["PrivateIpAddress"] for entry in answer["AssignedPrivateIpAddresses"]}
    equal((len(added), added), (5, secondaries(made["primary"])))
    equal(available(made["main"]), free - 5)
    assign = ec2.assign_private_ip_addresses
    error = refused("PrivateIpAddressLimitExceeded", assign, NetworkInterfaceId=made["primary"], SecondaryPrivateIpAddressCount=5)
    equal(error.response["Error"]["Message"], "Number of private addresses will exceed limit.")
    equal(secondaries(made["primary"]), added)
    one = sorted(added)[0]
    refused("InvalidParameterValue", assign, "move is not allowed", NetworkInterfaceId=new_eni(), PrivateIpAddresses=[one])
    taker = new_eni()
    assign(NetworkInterfaceId=taker, PrivateIpAddresses=[one], AllowReassignment=True)
    equal((secondaries(taker), one in secondaries(made["primary"])), ({one}, False))
    refused("InvalidParameterValue", assign, NetworkInterfaceId=taker, PrivateIpAddresses=["10.0.0.1"])
    refused("InvalidParameterValue", assign, NetworkInterfaceId=taker, PrivateIpAddresses=["10.9.0.1"])
    refused("InvalidParameterCombination", assign, NetworkInterfaceId=taker, PrivateIpAddresses=["10.0.0.200"], SecondaryPrivateIpAddressCount=1)
    refused("InvalidIPAddress.InUse", ec2.create_network_interface, SubnetId=made["main"], PrivateIpAddress=one)
    ec2.unassign_private_ip_addresses(NetworkInterfaceId=made["primary"], PrivateIpAddresses=sorted(added - {one}))
    equal(secondaries(made["primary"]), set())
    refused("InvalidParameterValue", ec2.unassign_private_ip_addresses, NetworkInterfaceId=made["primary"], PrivateIpAddresses=[one])


@check
def prefixes_are_assigned():
    assign = ec2.assign_private_ip_addresses
    free = available(made["main"])
    answer = assign(NetworkInterfaceId=made["primary"], Ipv4PrefixCount=2)
    added = {entry["Ipv4Prefix"] for entry in answer["AssignedIpv4Prefixes"]}
    equal({ipaddress.ip_network(prefix).prefixlen for prefix in added}, {28})
    equal({entry["Ipv4Prefix"] for entry in interface(made["primary"])["Ipv4Prefixes"]}, added)
    equal(available(made["main"]), free - 32)
    inside = str(ipaddress.ip_network(sorted(added)[0])[3])
    refused("InvalidParameterValue", assign, NetworkInterfaceId=new_eni(), PrivateIpAddresses=[inside])
    ec2.unassign_private_ip_addresses(NetworkInterfaceId=made["primary"], Ipv4Prefixes=sorted(added))
    equal(available(made["main"]), free - 1)
    equal(len(interface(new_eni(Ipv4PrefixCount=1))["Ipv4Prefixes"]), 1)
    named = new_eni("other", Ipv4Prefixes=[{"Ipv4Prefix": "10.0.2.64/28"}])
    equal(interface(named)["Ipv4Prefixes"], [{"Ipv4Prefix": "10.0.2.64/28"}])
    ec2.delete_network_interface(NetworkInterfaceId=named)
    old = ec2.run_instances(ImageId="ami-1", InstanceType="m4.large", MinCount=1, MaxCount=1, SubnetId=made["other"])
    xen = old["Instances"][0]["NetworkInterfaces"][0]["NetworkInterfaceId"]
    refused("UnsupportedOperation", assign, NetworkInterfaceId=xen, Ipv4PrefixCount=1)


@check
def a_subnet_runs_out():
    eni = new_eni("tiny", SecondaryPrivateIpAddressCount=8)
    assign = ec2.assign_private_ip_addresses
    error = refused("InsufficientFreeAddressesInSubnet", assign, NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount=3)
    equal(
        error.response["Error"]["Message"],
        "The specified subnet does not have enough free addresses to satisfy the request.",
    )
    equal(available(made["tiny"]), 2)
    refused("InsufficientCidrBlocks", assign, "enough free cidr blocks", NetworkInterfaceId=eni, Ipv4PrefixCount=1)
    refused(
        "InvalidParameterValue", ec2.create_network_interface, "There aren't sufficient free Ipv4 addresses or prefixes",
        SubnetId=made["tiny"], Ipv4PrefixCount=1,
    )
    ec2.delete_network_interface(NetworkInterfaceId=eni)
    equal(available(made["tiny"]), 11)


@check
def ipv6():
    eni = new_eni(Ipv6AddressCount=1)
    answer = ec2.assign_ipv6_addresses(NetworkInterfaceId=eni, Ipv6PrefixCount=1)
    prefix = answer["AssignedIpv6Prefixes"][0]
    equal(ipaddress.ip_network(prefix).prefixlen, 80)
    assert ipaddress.ip_network(prefix).subnet_of(ipaddress.ip_network(made["ipv6"]))
    answer = ec2.assign_ipv6_addresses(NetworkInterfaceId=eni, Ipv6AddressCount=2)
    equal(len(answer["AssignedIpv6Addresses"]), 2)
    told = interface(eni)
    equal((len(told["Ipv6Addresses"]), [entry["Ipv6Prefix"] for entry in told["Ipv6Prefixes"]]), (3, [prefix]))
    answer = ec2.unassign_ipv6_addresses(NetworkInterfaceId=eni, Ipv6Prefixes=[prefix])
    equal(answer["UnassignedIpv6Prefixes"], [prefix])
    refused("InvalidParameterValue", ec2.assign_ipv6_addresses, NetworkInterfaceId=new_eni("other"), Ipv6AddressCount=1)


@check
def a_client_token_makes_a_call_safe_to_repeat():
    parameters = {"SubnetId": made["main"], "ClientToken": "one-token", "SecondaryPrivateIpAddressCount": 1}
    first = ec2.create_network_interface(**parameters)["NetworkInterface"]
    second = ec2.create_network_interface(**parameters)["NetworkInterface"]
    equal(second["NetworkInterfaceId"], first["NetworkInterfaceId"])
    parameters["SecondaryPrivateIpAddressCount"] = 2
    refused("IdempotentParameterMismatch", ec2.create_network_interface, **parameters)
    # An answer that never comes: boto3 repeats the call by itself, with the token that it made up.
    admin("POST", "faults", {"action": "CreateNetworkInterface", "effect": "timeout_after_effect", "count": 1})
    patient = client(read_timeout=1, retries={"mode": "standard", "total_max_attempts": 3})
    before = len(ec2.describe_network_interfaces()["NetworkInterfaces"])
    patient.create_network_interface(SubnetId=made["main"])
    equal(len(ec2.describe_network_interfaces()["NetworkInterfaces"]), before + 1)


@check
def filters():
    def found(**named):
        asked = [{"Name": name, "Values": values if isinstance(values, list) else [values]} for name, values in named.items()]
        return {eni["NetworkInterfaceId"] for eni in ec2.describe_network_interfaces(Filters=asked)["NetworkInterfaces"]}

    tag = "node.k8s.amazonaws.com/instance_id"
    equal(found(**{f"tag:{tag}": made["node"]}), {made["eni"]})
    equal(found(**{"tag-key": tag}), {made["eni"]})
    equal(len(found(**{"attachment.instance-id": made["node"]})), 3)
    equal(found(**{"attachment.instance-id": made["node"], "attachment.device-index": "1"}), {made["eni"]})
    equal(found(description="chang*"), {made["eni"]})
    equal(found(**{"network-interface-id": [made["eni"], made["primary"]]}), {made["eni"], made["primary"]})
    equal(found(**{"status": "available"}) & found(status="in-use"), set())
    equal(found(**{"subnet-id": made["main"]}) | found(**{"subnet-id": made["other"]}), found(**{"vpc-id": made["vpc"]}))
    equal(found(**{"private-ip-address": interface(made["eni"])["PrivateIpAddress"]}), {made["eni"]})
    refused("InvalidParameterValue", ec2.describe_network_interfaces, Filters=[{"Name": "colour", "Values": ["red"]}])


@check
def route_tables():
    found = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [made["vpc"]]}])["RouteTables"]
    equal([[a["Main"] for a in table["Associations"]] for table in found], [[True]])
    routes = {(route.get("DestinationCidrBlock"), route["GatewayId"], route["State"]) for route in found[0]["Routes"]}
    equal(routes, {("10.0.0.0/16", "local", "active"), (None, "local", "active")})
    table = found[0]["RouteTableId"]
    equal([t["VpcId"] for t in ec2.describe_route_tables(RouteTableIds=[table])["RouteTables"]], [made["vpc"]])
    main = [{"Name": "association.main", "Values": ["false"]}, {"Name": "route-table-id", "Values": [table]}]
    equal(ec2.describe_route_tables(Filters=main)["RouteTables"], [])
    refused("InvalidRouteTableID.NotFound", ec2.describe_route_tables, RouteTableIds=["rtb-00000000000000000"])


@check
def pages():
    whole = {eni["NetworkInterfaceId"] for eni in ec2.describe_network_interfaces()["NetworkInterfaces"]}
    paginator = ec2.get_paginator("describe_network_interfaces")
    pages = [page["NetworkInterfaces"] for page in paginator.paginate(PaginationConfig={"PageSize": 5})]
    assert len(pages) >= 2 and all(len(page) <= 5 for page in pages)
    seen = [eni["NetworkInterfaceId"] for page in pages for eni in page]
    equal((len(seen), set(seen)), (len(whole), whole))
    describe = ec2.describe_network_interfaces
    unchecked = client(parameter_validation=False).describe_network_interfaces
    refused("InvalidParameterValue", unchecked, MaxResults=4)
    refused("InvalidParameterValue", unchecked, MaxResults=1001)
    refused("InvalidParameterValue", describe, MaxResults=5, NextToken="nonsense")
    refused("InvalidParameterCombination", describe, MaxResults=5, NetworkInterfaceIds=[made["eni"]])
    error = refused("InvalidNetworkInterfaceID.NotFound", describe, NetworkInterfaceIds=[made["eni"], "eni-00000000000000000"])
    equal(error.response["Error"]["Message"], "The networkInterface ID 'eni-00000000000000000' does not exist")


@check
def tags_of_all_kinds():
    resources = [made["vpc"], made["main"], made["group"], made["node"], made["eni"]]
    ec2.create_tags(Resources=resources, Tags=[{"Key": "owner", "Value": "é \"quoted\""}, {"Key": "empty", "Value": ""}])
    told = ec2.describe_tags(Filters=[{"Name": "key", "Values": ["owner"]}])["Tags"]
    equal({tag["ResourceId"] for tag in told}, set(resources))
    equal({tag["Value"] for tag in told}, {'é "quoted"'})
    kinds = {"vpc", "subnet", "security-group", "instance", "network-interface"}
    equal({tag["ResourceType"] for tag in told}, kinds)
    ec2.delete_tags(Resources=[made["vpc"]], Tags=[{"Key": "owner"}])
    told = ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [made["vpc"]]}])["Tags"]
    equal({tag["Key"] for tag in told}, {"Name", "empty"})
    refused("InvalidNetworkInterfaceID.NotFound", ec2.create_tags, Resources=["eni-00000000000000000"], Tags=[{"Key": "a", "Value": "b"}])
    refused("InvalidParameterValue", ec2.create_tags, Resources=[made["eni"]], Tags=[{"Key": "aws:mine", "Value": "b"}])


@check
def interfaces_go_away():
    delete = ec2.delete_network_interface
    refused("InvalidParameterValue", delete, "is currently in use.", NetworkInterfaceId=made["eni"])
    primary = interface(made["primary"])["Attachment"]["AttachmentId"]
    refused("OperationNotPermitted", ec2.detach_network_interface, AttachmentId=primary)
    free = available(made["main"])
    ec2.detach_network_interface(AttachmentId=made["attachment"])
    ec2.get_waiter("network_interface_available").wait(NetworkInterfaceIds=[made["eni"]], WaiterConfig=QUICK)
    delete(NetworkInterfaceId=made["eni"])
    equal(available(made["main"]), free + 10)
    refused("InvalidNetworkInterfaceID.NotFound", delete, NetworkInterfaceId=made["eni"])
    refused("InvalidAttachmentID.NotFound", ec2.detach_network_interface, AttachmentId=made["attachment"])
    refused("InvalidNetworkInterfaceId.Malformed", delete, NetworkInterfaceId="eni-xyz")


@check
def a_dry_run_changes_nothing():
    before = available(made["main"])
    refused("DryRunOperation", ec2.create_network_interface, status=412, SubnetId=made["main"], DryRun=True)
    equal(available(made["main"]), before)


@check
def calls_are_throttled():
    admin("POST", "settings", {"throttle": True})
    try:
        codes = set()
        for _ in range(140):
            try:
                ec2.describe_vpcs()
            except ClientError as error:
                equal(error.response["ResponseMetadata"]["HTTPStatusCode"], 503)
                codes.add(error.response["Error"]["Code"])
        equal(codes, {"RequestLimitExceeded"})
    finally:
        admin("POST", "settings", {"throttle": False})
    calls = admin("GET", "calls")
    equal(calls["calls"][-1]["action"], "DescribeVpcs")
    assert any(call["outcome"] == "RequestLimitExceeded" for call in calls["calls"])


@check
def denied_calls_are_denied():
    effect = {"error": {"code": "UnauthorizedOperation", "message": "You are not authorized.", "status": 403}}
    admin("POST", "faults", {"action": "DescribeSubnets", "effect": effect})
    refused("UnauthorizedOperation", ec2.describe_subnets, status=403)
    admin("DELETE", "faults")
    ec2.describe_subnets()


@check
def the_cli_makes_and_tells():
    vpc = cli("create-vpc", "--cidr-block", "172.20.0.0/16")["Vpc"]["VpcId"]
    subnet = cli("create-subnet", "--vpc-id", vpc, "--cidr-block", "172.20.1.0/24")["Subnet"]["SubnetId"]
    group = cli("create-security-group", "--group-name", "cli", "--description", "d", "--vpc-id", vpc)["GroupId"]
    cli("authorize-security-group-ingress", "--group-id", group, "--protocol", "tcp", "--port", "22", "--cidr", "0.0.0.0/0")
    told = cli("describe-security-groups", "--group-ids", group)["SecurityGroups"][0]
    equal((told["IpPermissions"][0]["FromPort"], told["IpPermissions"][0]["IpRanges"]), (22, [{"CidrIp": "0.0.0.0/0"}]))
    node = cli(
        "run-instances", "--image-id", "ami-1", "--instance-type", "m5.large", "--count", "1", "--subnet-id", subnet,
        "--tag-specifications", "ResourceType=instance,Tags=[{Key=Name,Value=from the cli}]",
    )["Instances"][0]
    cli("wait", "instance-running", "--instance-ids", node["InstanceId"])
    eni = cli(
        "create-network-interface", "--subnet-id", subnet, "--groups", group, "--secondary-private-ip-address-count", "4",
    )["NetworkInterface"]["NetworkInterfaceId"]
    cli("attach-network-interface", "--network-interface-id", eni, "--instance-id", node["InstanceId"], "--device-index", "1")
    cli("assign-private-ip-addresses", "--network-interface-id", eni, "--ipv4-prefix-count", "2")
    told = cli("describe-network-interfaces", "--filters", f"Name=attachment.instance-id,Values={node['InstanceId']}")
    equal(sorted(len(entry.get("Ipv4Prefixes", [])) for entry in told["NetworkInterfaces"]), [0, 2])
    names = cli("describe-tags", "--filters", f"Name=resource-id,Values={node['InstanceId']}")["Tags"]
    equal([tag["Value"] for tag in names], ["from the cli"])
    told = cli("describe-network-interfaces", "--page-size", "5", "--max-items", "7")
    equal(len(told["NetworkInterfaces"]), 7)
    cli(
        "assign-private-ip-addresses", "--network-interface-id", eni, "--secondary-private-ip-address-count", "9",
        fails="(PrivateIpAddressLimitExceeded) when calling the AssignPrivateIpAddresses operation",
    )
    cli("delete-network-interface", "--network-interface-id", eni, fails="is currently in use.")


@check
def the_metadata_service_gives_identity_and_credentials():
    os.environ["AWS_EC2_METADATA_DISABLED"] = "false"
    settings = {"ec2_metadata_service_endpoint": f"{IMDS}/"}
    fetcher = InstanceMetadataFetcher(timeout=5, num_attempts=1, base_url=f"{IMDS}/", config=settings)
    credentials = fetcher.retrieve_iam_role_credentials()
    equal(credentials["role_name"], "vpcsim-node")
    assert credentials["access_key"].startswith("ASIA") and credentials["token"]
    left = datetime.datetime.fromisoformat(credentials["expiry_time"]) - datetime.datetime.now(datetime.timezone.utc)
    assert datetime.timedelta(hours=1) < left < datetime.timedelta(hours=7), left
    region = InstanceMetadataRegionFetcher(timeout=5, num_attempts=1, base_url=f"{IMDS}/", config=settings)
    equal(region.retrieve_region(), "us-east-1")
    plain = IMDSFetcher(timeout=5, num_attempts=1, base_url=f"{IMDS}/", config=settings)
    token = plain._fetch_metadata_token()
    told = lambda path: plain._get_request(path, lambda _: False, token=token).text  # noqa: E731
    equal(told("latest/meta-data/instance-id"), made["node"])
    mac = told("latest/meta-data/mac")
    assert f"{mac}/" in told("latest/meta-data/network/interfaces/macs/").split("\n")
    equal(told(f"latest/meta-data/network/interfaces/macs/{mac}/interface-id"), made["primary"])


@check
def instances_end():
    ids = [made["node"], made["node2"]]
    answer = ec2.terminate_instances(InstanceIds=ids)
    equal({entry["PreviousState"]["Name"] for entry in answer["TerminatingInstances"]}, {"running"})
    ec2.get_waiter("instance_terminated").wait(InstanceIds=ids, WaiterConfig=QUICK)
    refused("InvalidNetworkInterfaceID.NotFound", ec2.describe_network_interfaces, NetworkInterfaceIds=[made["primary"]])


def main():
    failed = 0
    for function in checks:
        name = function.__name__.replace("_", " ")
        try:
            function()
            print(f"ok    {name}", flush=True)
        except Exception:  # noqa: BLE001
            failed += 1
            print(f"FAIL  {name}", flush=True)
            traceback.print_exc()
    print(f"{len(checks) - failed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


sys.exit(main())

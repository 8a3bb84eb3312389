//! What a peer is known to lack.

/// Checks that LocalStack 4.13.1 does not pass, and what it does instead (docs/localstack.md).
pub(crate) const LOCALSTACK_LACKS: &[(&str, &str)] = &[
    ("an_eni_is_made_with_prefixes", "`Ipv4PrefixCount` is passed over: the ENI has none"),
    ("a_client_token_makes_one_eni", "`ClientToken` is passed over: a repeated call makes a second ENI"),
    (
        "a_client_token_for_something_else_conflicts",
        "`ClientToken` is passed over, and so there is no `IdempotentParameterMismatch`",
    ),
    (
        "each_address_is_handed_out_once",
        "addresses are drawn at random from the whole CIDR: some twice, AWS's own five among them",
    ),
    (
        "an_attachment_is_deleted_with_its_instance_where_asked_for",
        "ModifyNetworkInterfaceAttribute says yes and leaves `DeleteOnTermination` as it was",
    ),
    ("assigning_answers_with_what_is_new", "AssignPrivateIpAddresses answers with all addresses of the ENI"),
    ("prefixes_are_assigned", "`Ipv4PrefixCount` is passed over: the answer has the primary address instead"),
    ("prefixes_are_given_back", "there are no prefixes"),
    ("giving_back_twice_conflicts", "UnassignPrivateIpAddresses says yes to addresses that the ENI does not have"),
    ("an_attached_eni_is_not_deleted", "DeleteNetworkInterface deletes an attached ENI"),
    ("a_taken_device_index_conflicts", "AttachNetworkInterface takes a device index that is taken"),
    ("an_instance_holds_so_many_enis", "an instance holds any number of ENIs: no `AttachmentLimitExceeded`"),
    ("an_eni_holds_so_many_addresses", "an ENI holds any number of addresses: no `PrivateIpAddressLimitExceeded`"),
    ("a_full_subnet_makes_no_eni", "a subnet never runs out of addresses, and its count goes below zero"),
    ("a_full_subnet_assigns_no_address", "a subnet never runs out of addresses"),
    ("without_a_whole_block_no_eni_with_a_prefix_is_made", "there are no prefixes, and so none are missing"),
    ("without_a_whole_block_no_prefix_is_assigned", "there are no prefixes, and so none are missing"),
    (
        "a_subnet_is_described_with_its_ipv6_cidr",
        "the state of the subnet's IPv6 CIDR is `{'State': 'associated'}`, which is no state",
    ),
    ("an_eni_is_made_with_an_ipv6_prefix", "`Ipv6PrefixCount` is passed over: the ENI has none"),
    ("an_ipv6_prefix_is_assigned", "`Ipv6PrefixCount` is passed over: the answer has none"),
    ("without_an_ipv6_cidr_no_ipv6_prefix_is_assigned", "AssignIpv6Addresses says yes and assigns nothing"),
    (
        "the_name_of_a_cluster_is_no_pattern",
        "a backslash in a filter stands for itself: `*` is a pattern with one before it, too",
    ),
    (
        "interfaces_are_found_by_the_name_of_their_security_group",
        "DescribeNetworkInterfaces has no filter `group-name`: `InternalFailure`",
    ),
];

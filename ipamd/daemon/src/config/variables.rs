//! The table of variables: what the documentation and the introspection port show.

/// Whether a variable does something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// On the pool and the daemon.
    Daemon,
    /// On the host's network.
    Network,
    /// VPC CNI knows it; here it has no effect yet, which is said in the log when it is set.
    Later,
    /// It has no effect and needs none: what it switches does not exist here.
    Never,
}

/// A variable of the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Its default, as it would be written.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
    /// On what.
    pub effect: Effect,
}

const fn daemon(name: &'static str, default: &'static str, meaning: &'static str) -> Variable {
    Variable { name, default, meaning, effect: Effect::Daemon }
}

const fn network(name: &'static str, default: &'static str, meaning: &'static str) -> Variable {
    Variable { name, default, meaning, effect: Effect::Network }
}

const fn later(name: &'static str, default: &'static str, meaning: &'static str) -> Variable {
    Variable { name, default, meaning, effect: Effect::Later }
}

const fn never(name: &'static str, default: &'static str, meaning: &'static str) -> Variable {
    Variable { name, default, meaning, effect: Effect::Never }
}

/// Every variable that is read or recognised, by name.
pub const VARIABLES: &[Variable] = &[
    daemon("ADDITIONAL_ENI_TAGS", "{}", "JSON object of tags that new ENIs get"),
    daemon("ANNOTATE_POD_IP", "false", "write pods' addresses into their annotation vpc.amazonaws.com/pod-ips"),
    network(
        "AWS_EXTERNAL_SERVICE_CIDRS",
        "",
        "IPv4 CIDRs, with commas between them, that pods on secondary ENIs reach by the primary ENI",
    ),
    daemon("AWS_MANAGE_ENIS_NON_SCHEDULABLE", "false", "keep the pool of a cordoned node warm too"),
    network("AWS_VPC_CNI_NODE_PORT_SUPPORT", "true", "connections to NodePorts are answered by the primary ENI"),
    network("AWS_VPC_ENI_MTU", "9001", "MTU of ENIs, 576 (with IPv6 1280) to 9001 bytes"),
    daemon(
        "AWS_VPC_K8S_CNI_BACKING_STORE",
        "/var/run/aws-node/ipam.json",
        "where the AWS VPC CNI has kept its allocations, for a takeover of its node",
    ),
    never("AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER", "", "no effect in VPC CNI either"),
    network("AWS_VPC_K8S_CNI_CONNMARK", "0x80", "mark and mask of connections that belong to the primary ENI"),
    daemon(
        "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG",
        "false",
        "make ENIs where the node's ENIConfig says; no pods on the primary ENI",
    ),
    network(
        "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS",
        "",
        "IPv4 CIDRs, with commas between them, to which pods' addresses are not translated",
    ),
    network("AWS_VPC_K8S_CNI_EXTERNALSNAT", "false", "leave address translation to something outside the node"),
    later("AWS_VPC_K8S_CNI_LOG_FILE", "stderr", "log file; logs go to the standard error"),
    daemon("AWS_VPC_K8S_CNI_LOGLEVEL", "INFO", "DEBUG, INFO, WARN or ERROR"),
    network("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "prng", "source ports of translated connections: prng, hashrandom, none"),
    network("AWS_VPC_K8S_CNI_VETHPREFIX", "eni", "beginning of the names of pods' host interfaces"),
    daemon("CLUSTER_ENDPOINT", "", "URL of the API server, in place of the service account's"),
    daemon(
        "CLUSTER_NAME",
        "",
        "cluster tag of new ENIs, and a condition on tagged subnets; while it is empty, ENIs that nodes leave behind stay",
    ),
    daemon("DISABLE_INTROSPECTION", "false", "do not serve the introspection port"),
    daemon("DISABLE_LEAKED_ENI_CLEANUP", "false", "do not delete ENIs that nodes which are gone left behind"),
    daemon("DISABLE_METRICS", "false", "do not serve the metrics port"),
    daemon("DISABLE_NETWORK_RESOURCE_PROVISIONING", "false", "neither make nor free ENIs and addresses"),
    network("DISABLE_POD_V6", "false", "switch IPv6 off inside pods"),
    network("DISABLE_TCP_EARLY_DEMUX", "false", "probes of pods behind security groups of their own need it"),
    later("ENABLE_BANDWIDTH_PLUGIN", "false", "chain the bandwidth plugin"),
    daemon("ENABLE_IMDS_ONLY_MODE", "false", "never call EC2; use what the metadata service shows"),
    daemon("ENABLE_IPv4", "true", "pods have IPv4 addresses; with ENABLE_IPv6 too, they have both"),
    daemon("ENABLE_IPv6", "false", "pods have IPv6 addresses, of a /80 of their ENI"),
    daemon(
        "ENABLE_MULTI_NIC",
        "false",
        "pods annotated k8s.amazonaws.com/nicConfig: multi-nic-attachment have an interface on each network card",
    ),
    daemon(
        "ENABLE_POD_ENI",
        "false",
        "security groups for pods: those that ask for vpc.amazonaws.com/pod-eni have a branch ENI to themselves",
    ),
    daemon("ENABLE_PREFIX_DELEGATION", "false", "assign /28 prefixes instead of single addresses"),
    daemon("ENABLE_SUBNET_DISCOVERY", "true", "make ENIs in subnets tagged kubernetes.io/role/cni too"),
    network("ENABLE_V4_EGRESS", "true", "pods of IPv6 alone reach IPv4 by the node's address"),
    network("ENABLE_V6_EGRESS", "false", "pods of IPv4 alone reach IPv6 by the node's address"),
    daemon(
        "ENI_CONFIG_ANNOTATION_DEF",
        "k8s.amazonaws.com/eniConfig",
        "annotation of the node that names its ENIConfig",
    ),
    daemon("ENI_CONFIG_LABEL_DEF", "k8s.amazonaws.com/eniConfig", "label of the node that names its ENIConfig"),
    daemon("HTTP_TIMEOUT", "10", "seconds that one call of EC2 or IMDS may take, 10 to 300"),
    daemon("INTROSPECTION_BIND_ADDRESS", "127.0.0.1:61679", "where introspection is served"),
    daemon("IP_COOLDOWN_PERIOD", "30", "seconds before an address is used again"),
    daemon("MANAGE_UNTAGGED_ENI", "true", "use ENIs without our tag"),
    daemon("MAX_ENI", "-1", "most ENIs; -1 and 0 leave it to the instance type"),
    daemon("MINIMUM_IP_TARGET", "0", "fewest addresses on the node"),
    daemon("MY_NODE_NAME", "", "name of the node's object in Kubernetes"),
    later("NETWORK_POLICY_ENFORCING_MODE", "standard", "what a pod may do before its policy is known"),
    network("POD_MTU", "AWS_VPC_ENI_MTU", "MTU of pods' interfaces, 576 (with IPv6 1280) to 9001 bytes"),
    network(
        "POD_SECURITY_GROUP_ENFORCING_MODE",
        "strict",
        "strict: all traffic of pods with security groups of their own goes by their branch ENI; standard: not what stays on the node or leaves the VPC",
    ),
    daemon("SLUICE_ADD_DEADLINE", "60", "seconds that an ADD waits for an address at most, 1 to 220"),
    network(
        "SLUICE_BLOCK_POD_METADATA",
        "false",
        "pods do not reach the instance metadata service; host-network pods do",
    ),
    daemon("SLUICE_CLUSTER_DIR", "", "directory of YAML files that stand for the API server"),
    daemon("SLUICE_EC2_RATE", "5", "calls a second of each changing EC2 action at most, 1 to 100"),
    network(
        "SLUICE_EXCLUDE_SNAT_ROUTES",
        "false",
        "nothing is translated on its way to private networks that the VPC's route tables lead to: by peering, transit gateway, VPN",
    ),
    daemon(
        "SLUICE_HEALTH_ADDRESS",
        "127.0.0.1:61681",
        "where /livez and /readyz are served from the start on; the two other ports have them too, once aws-node has gone",
    ),
    daemon("SLUICE_LOG", "", "log filter in tracing-subscriber's words; goes before AWS_VPC_K8S_CNI_LOGLEVEL"),
    daemon("SLUICE_LOG_FORMAT", "text", "text or json"),
    daemon(
        "SLUICE_MAX_PODS",
        "0",
        "most pods of the node; 0 is what its object says (status.capacity.pods), and until that is known what follows from the instance type",
    ),
    daemon("SLUICE_MAX_WAITING", "1024", "ADDs that may wait at once, 1 to 10000"),
    daemon("SLUICE_METRICS_ADDRESS", "[::]:61678", "where metrics are served; [::] is every address of both families"),
    daemon("SLUICE_NAMESPACE", "kube-system", "namespace of the cluster's ConfigMap and Lease sluice-ipamd"),
    daemon("SLUICE_RUN_DIR", "/run/sluice", "directory of socket, checkpoint and tombstones"),
    network(
        "SLUICE_SNAT_BY_ENI",
        "false",
        "what leaves the VPC leaves by its pod's ENI and with that one's address: as many as there are ENIs",
    ),
    daemon("SLUICE_STOP_GRACE", "5", "seconds that a stop waits for calls under way, 0 to 60"),
    daemon(
        "SLUICE_WARM_MODE",
        "static",
        "static: the warm targets; adaptive: as many as the node's own arrivals of pods have shown to be enough",
    ),
    daemon("WARM_ENI_TARGET", "1", "ENIs' worth of free addresses; negative is 1"),
    daemon("WARM_IP_TARGET", "0", "free addresses; 0 is unset"),
    daemon("WARM_PREFIX_TARGET", "1", "free prefixes, in prefix mode"),
];

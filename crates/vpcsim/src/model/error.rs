//! EC2's errors, in EC2's words. Clients (VPC CNI among them) match on codes and on parts of messages, so both are part
//! of the interface.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt::Display;
use std::net::IpAddr;

use sluice_contract::id::{EniId, InstanceId, InvalidId};

/// An error answer of the EC2 API.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// The error code.
    pub code: Cow<'static, str>,
    /// The message.
    pub message: String,
    /// The HTTP status it is sent with.
    pub status: u16,
}

impl ApiError {
    /// A client's error (HTTP 400).
    #[must_use]
    pub fn client(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), status: 400 }
    }

    /// An error with its own status.
    #[must_use]
    pub fn with_status(code: impl Into<Cow<'static, str>>, message: impl Into<String>, status: u16) -> Self {
        Self { code: code.into(), message: message.into(), status }
    }

    /// `InvalidParameterValue`.
    #[must_use]
    pub fn invalid_value(message: impl Into<String>) -> Self {
        Self::client("InvalidParameterValue", message)
    }

    /// `InvalidParameterValue` for a named parameter.
    #[must_use]
    pub fn invalid_parameter(name: &str, value: impl Display, rule: &str) -> Self {
        Self::invalid_value(format!("Value ({value}) for parameter {name} is invalid. {rule}"))
    }

    /// `InvalidParameterCombination`.
    #[must_use]
    pub fn combination(message: impl Into<String>) -> Self {
        Self::client("InvalidParameterCombination", message)
    }

    /// `MissingParameter`.
    #[must_use]
    pub fn missing(name: &str) -> Self {
        Self::client("MissingParameter", format!("The request must contain the parameter {name}"))
    }

    /// Throttling (EC2 API, "Request throttling").
    #[must_use]
    pub fn throttled() -> Self {
        Self::with_status("RequestLimitExceeded", "Request limit exceeded.", 503)
    }

    /// A fault of EC2's own.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::with_status("InternalError", message, 500)
    }

    pub(super) fn not_found(what: Missing, id: impl Display) -> Self {
        let (code, noun) = what.words();
        Self::client(code, format!("The {noun} '{id}' does not exist"))
    }

    pub(super) fn none_found(what: Missing, ids: &[String]) -> Self {
        let (code, noun) = what.words();
        match ids {
            [id] => Self::client(code, format!("The {noun} '{id}' does not exist")),
            _ => Self::client(code, format!("The {noun}s '{}' do not exist", ids.join(", "))),
        }
    }

    pub(super) fn insufficient_addresses() -> Self {
        Self::client(
            "InsufficientFreeAddressesInSubnet",
            "The specified subnet does not have enough free addresses to satisfy the request.",
        )
    }

    pub(super) fn insufficient_prefixes() -> Self {
        Self::client(
            "InsufficientCidrBlocks",
            "The specified subnet does not have enough free cidr blocks to satisfy the request.",
        )
    }

    pub(super) fn insufficient_for_create() -> Self {
        Self::invalid_value("There aren't sufficient free Ipv4 addresses or prefixes")
    }

    pub(super) fn address_limit() -> Self {
        Self::client("PrivateIpAddressLimitExceeded", "Number of private addresses will exceed limit.")
    }

    pub(super) fn attachment_limit(count: usize, instance_type: &str) -> Self {
        Self::client(
            "AttachmentLimitExceeded",
            format!("Interface count {count} exceeds the limit for {instance_type}"),
        )
    }

    pub(super) fn device_in_use(instance: &InstanceId, device: u32) -> Self {
        Self::invalid_value(format!(
            "Instance '{instance}' already has an interface attached at device index '{device}'."
        ))
    }

    pub(super) fn interface_attached(eni: &EniId) -> Self {
        Self::client("InvalidNetworkInterface.InUse", format!("Interface: [{eni}] in use."))
    }

    pub(super) fn interface_in_use(eni: &EniId) -> Self {
        Self::invalid_value(format!("Network interface '{eni}' is currently in use."))
    }

    pub(super) fn address_in_use(address: impl Into<IpAddr>) -> Self {
        Self::client("InvalidIPAddress.InUse", format!("Address {} is in use.", address.into()))
    }

    pub(super) fn move_not_allowed(address: impl Display) -> Self {
        Self::invalid_value(format!("[{address}] are already assigned, but move is not allowed."))
    }

    pub(super) fn address_outside(address: impl Into<IpAddr>) -> Self {
        Self::invalid_value(format!("Address {} does not fall within the subnet's address range", address.into()))
    }

    pub(super) fn address_reserved(address: impl Into<IpAddr>) -> Self {
        Self::invalid_value(format!("Address {} is in subnet's reserved address range", address.into()))
    }

    pub(super) fn not_assigned(eni: &EniId) -> Self {
        Self::invalid_value(format!("Some of the specified addresses are not assigned to interface {eni}"))
    }
}

impl From<Infallible> for ApiError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl From<InvalidId> for ApiError {
    fn from(error: InvalidId) -> Self {
        let (code, prefix) = match error.kind {
            "network interface id" => ("InvalidNetworkInterfaceId.Malformed", "eni-..."),
            "attachment id" => ("InvalidAttachmentID.Malformed", "eni-attach-..."),
            "instance id" => ("InvalidInstanceID.Malformed", "i-..."),
            "subnet id" => ("InvalidSubnetID.Malformed", "subnet-..."),
            "VPC id" => ("InvalidVpcID.Malformed", "vpc-..."),
            "security group id" => ("InvalidGroupId.Malformed", "sg-..."),
            _ => ("InvalidParameterValue", error.rule),
        };
        Self::client(code, format!("Invalid id: \"{}\" (expecting \"{prefix}\")", error.value))
    }
}

/// What was looked for in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Eni,
    Attachment,
    Instance,
    Subnet,
    Vpc,
    SecurityGroup,
    RouteTable,
    Resource,
}

impl Missing {
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Eni => ("InvalidNetworkInterfaceID.NotFound", "networkInterface ID"),
            Self::Attachment => ("InvalidAttachmentID.NotFound", "networkInterface attachment ID"),
            Self::Instance => ("InvalidInstanceID.NotFound", "instance ID"),
            Self::Subnet => ("InvalidSubnetID.NotFound", "subnet ID"),
            Self::Vpc => ("InvalidVpcID.NotFound", "vpc ID"),
            Self::SecurityGroup => ("InvalidGroup.NotFound", "security group"),
            Self::RouteTable => ("InvalidRouteTableID.NotFound", "routeTable ID"),
            Self::Resource => ("InvalidID", "ID"),
        }
    }
}

use super::*;
use CloudErrorKind as Kind;

#[test]
fn every_code_means_what_there_is_to_do_about_it() {
    for (code, status, kind) in [
        ("RequestLimitExceeded", 503, Kind::Throttled),
        ("Throttling", 400, Kind::Throttled),
        ("ThrottlingException", 400, Kind::Throttled),
        ("RequestThrottled", 400, Kind::Throttled),
        ("RequestThrottledException", 400, Kind::Throttled),
        ("TooManyRequestsException", 429, Kind::Throttled),
        ("EC2ThrottledException", 503, Kind::Throttled),
        ("BandwidthLimitExceeded", 509, Kind::Throttled),
        ("SlowDown", 503, Kind::Throttled),
        ("", 429, Kind::Throttled),
        ("UnauthorizedOperation", 403, Kind::Denied),
        ("AccessDenied", 403, Kind::Denied),
        ("AuthFailure", 401, Kind::Denied),
        ("ExpiredToken", 400, Kind::Denied),
        ("RequestExpired", 400, Kind::Denied),
        ("SignatureDoesNotMatch", 403, Kind::Denied),
        ("OptInRequired", 401, Kind::Denied),
        ("", 403, Kind::Denied),
        ("InsufficientFreeAddressesInSubnet", 400, Kind::InsufficientAddresses),
        ("InsufficientCidrBlocks", 400, Kind::InsufficientPrefixes),
        ("PrivateIpAddressLimitExceeded", 400, Kind::AddressLimit),
        ("AttachmentLimitExceeded", 400, Kind::AttachmentLimit),
        ("InvalidNetworkInterfaceID.NotFound", 400, Kind::NotFound),
        ("InvalidAttachmentID.NotFound", 400, Kind::NotFound),
        ("InvalidSubnetID.NotFound", 400, Kind::NotFound),
        ("InvalidInstanceID.NotFound", 400, Kind::NotFound),
        ("InvalidGroup.NotFound", 400, Kind::NotFound),
        ("IncorrectState", 400, Kind::Conflict),
        ("IdempotentParameterMismatch", 400, Kind::Conflict),
        ("InvalidNetworkInterface.InUse", 400, Kind::Conflict),
        ("DependencyViolation", 400, Kind::Conflict),
        ("InternalError", 500, Kind::Unavailable),
        ("Unavailable", 503, Kind::Unavailable),
        ("ServiceUnavailable", 503, Kind::Unavailable),
        ("", 500, Kind::Unavailable),
        ("", 502, Kind::Unavailable),
        ("", 503, Kind::Unavailable),
        ("NeverHeardOf", 504, Kind::Unavailable),
        ("NetworkInterfaceLimitExceeded", 400, Kind::Other),
        ("OperationNotPermitted", 400, Kind::Other),
        ("InvalidParameterCombination", 400, Kind::Other),
        ("NeverHeardOf", 400, Kind::Other),
        ("", 400, Kind::Other),
    ] {
        assert_eq!(kind_of(code, "", status, Asked::Other), kind, "{code:?} with {status}");
    }
}

#[test]
fn invalid_parameter_value_is_told_apart_by_its_words() {
    const NO_PREFIX: &str = "There aren't sufficient free Ipv4 addresses or prefixes";
    for (message, asked, kind) in [
        (NO_PREFIX, Asked::Prefixes, Kind::InsufficientPrefixes),
        (NO_PREFIX, Asked::Other, Kind::InsufficientPrefixes),
        (NO_PREFIX, Asked::Addresses, Kind::InsufficientAddresses),
        (
            "Instance 'i-0123456789abcdef0' already has an interface attached at device index '1'.",
            Asked::Other,
            Kind::Conflict,
        ),
        (
            "Some of the specified addresses are not assigned to interface eni-0123456789abcdef0",
            Asked::Other,
            Kind::Conflict,
        ),
        ("Network interface 'eni-0123456789abcdef0' is currently in use.", Asked::Other, Kind::Conflict),
        ("Value (x) for parameter groupId is invalid.", Asked::Other, Kind::Other),
        ("", Asked::Prefixes, Kind::Other),
    ] {
        assert_eq!(kind_of("InvalidParameterValue", message, 400, asked), kind, "{message}");
    }
}

#[test]
fn a_strange_answer_leaves_open_whether_a_change_was_made() {
    assert_eq!(malformed(Api::CreateNetworkInterface, "no id").kind, Kind::Timeout);
    assert_eq!(malformed(Api::DescribeSubnets, "no id").kind, Kind::Other);
}

#[test]
fn text_is_cut_between_characters() {
    let error = cloud_error(Api::Imds, Kind::Other, "X", &"ü".repeat(10_000));
    assert_eq!(error.message.chars().count(), LONGEST);
}

#[derive(Debug, thiserror::Error)]
#[error("outer")]
struct Outer(#[source] io::Error);

#[test]
fn causes_are_told_once_each_and_refusals_known() {
    let error = Outer(io::Error::new(io::ErrorKind::ConnectionRefused, "outer"));
    assert_eq!(causes(&error), "outer");
    let error = Outer(io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens"));
    assert_eq!(causes(&error), "outer: nobody listens");
    assert!(never_sent(&error));
    assert!(!never_sent(&Outer(io::Error::new(io::ErrorKind::ConnectionReset, "reset"))));
}

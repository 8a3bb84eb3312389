//! Names that AWS derives from others.

use std::net::Ipv4Addr;

/// The name of a private address inside a VPC (VPC User Guide, "DNS hostnames").
pub(crate) fn private(region: &str, address: Ipv4Addr) -> String {
    let dashed = dashed(address);
    if region == "us-east-1" {
        format!("ip-{dashed}.ec2.internal")
    } else {
        format!("ip-{dashed}.{region}.compute.internal")
    }
}

/// The name of a public address.
pub(crate) fn public(region: &str, address: Ipv4Addr) -> String {
    let dashed = dashed(address);
    if region == "us-east-1" {
        format!("ec2-{dashed}.compute-1.amazonaws.com")
    } else {
        format!("ec2-{dashed}.{region}.compute.amazonaws.com")
    }
}

/// `use1-az1` for `us-east-1a`.
pub(crate) fn zone_id(region: &str, zone: &str) -> String {
    let short: String = region
        .split('-')
        .map(|word| match word {
            "north" | "south" | "east" | "west" | "central" => word.chars().take(1).collect::<String>(),
            "northeast" => "ne".to_owned(),
            "southeast" => "se".to_owned(),
            other => other.to_owned(),
        })
        .collect();
    let number = zone.bytes().last().map_or(1, |letter| letter.saturating_sub(b'a').saturating_add(1));
    format!("{short}-az{number}")
}

fn dashed(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("{a}-{b}-{c}-{d}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_aws_makes_them() {
        let address = Ipv4Addr::new(10, 0, 1, 2);
        assert_eq!(private("us-east-1", address), "ip-10-0-1-2.ec2.internal");
        assert_eq!(private("eu-central-1", address), "ip-10-0-1-2.eu-central-1.compute.internal");
        assert_eq!(public("eu-central-1", address), "ec2-10-0-1-2.eu-central-1.compute.amazonaws.com");
        assert_eq!(zone_id("us-east-1", "us-east-1b"), "use1-az2");
        assert_eq!(zone_id("ap-southeast-2", "ap-southeast-2a"), "apse2-az1");
    }
}

//! Ids that only the VPC itself uses, and where all ids come from.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! vpc_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Takes an id as it is written; one that nothing was made with is simply not found.
            #[must_use]
            pub fn new(id: impl Into<String>) -> Self {
                Self(id.into())
            }

            /// The id as it is written on the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Infallible;

            fn from_str(id: &str) -> Result<Self, Infallible> {
                Ok(Self::new(id))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

vpc_id!(
    /// A route table, `rtb-` and hexadecimal digits.
    RouteTableId
);
vpc_id!(
    /// An Internet gateway, `igw-` and hexadecimal digits.
    InternetGatewayId
);
vpc_id!(
    /// A NAT gateway, `nat-` and hexadecimal digits.
    NatGatewayId
);
vpc_id!(
    /// A VPC peering connection, `pcx-` and hexadecimal digits.
    PeeringId
);

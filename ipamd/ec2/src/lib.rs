//! Cloud on aws.
use aws_config as _;
use aws_sdk_ec2 as _;
use aws_smithy_runtime_api as _;
use aws_smithy_types as _;

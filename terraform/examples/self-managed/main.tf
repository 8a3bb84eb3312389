# A kubeadm cluster in a VPC of its own: a control plane, two workers, no CNI plugin yet. `terraform/run self-managed` makes it,
# installs the chart, runs Kubernetes' conformance tests of networking, and takes it all away again.

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.0"
    }
  }
}

variable "region" {
  description = "Where."
  type        = string
  default     = "us-west-2"
}

variable "name" {
  description = "What everything is named after; a new one for each run."
  type        = string
}

variable "pod_cidr" {
  description = "A second CIDR for pods; empty for none."
  type        = string
  default     = "100.64.0.0/16"
}

variable "instance_type" {
  description = "The workers' type."
  type        = string
  default     = "m5.large"
}

provider "aws" {
  region = var.region

  default_tags {
    tags = { "sluice-test" = var.name }
  }
}

# Not those that an account has to ask for.
data "aws_availability_zones" "here" {
  state = "available"

  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }
}

data "aws_caller_identity" "here" {}

locals {
  zones     = slice(data.aws_availability_zones.here.names, 0, 2)
  parameter = "/sluice/${var.name}"
}

module "vpc" {
  source = "../../modules/vpc"

  name         = var.name
  cluster_name = var.name
  zones        = local.zones
  pod_cidr     = var.pod_cidr
}

module "iam" {
  source = "../../modules/iam"

  name  = var.name
  scope = { cluster_name = var.name, vpc_arn = module.vpc.vpc.arn }
}

# Workers learn from the control plane how to join.
resource "aws_iam_role_policy" "join" {
  name = "join"
  role = module.iam.node.role_name
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect   = "Allow"
      Action   = ["ssm:GetParameter", "ssm:PutParameter"]
      Resource = ["arn:aws:ssm:${var.region}:${data.aws_caller_identity.here.account_id}:parameter${local.parameter}/*"]
    }]
  })
}

resource "aws_security_group" "nodes" {
  name        = "${var.name}-nodes"
  description = "Nodes and their pods"
  vpc_id      = module.vpc.vpc.id
  tags        = { Name = "${var.name}-nodes" }
}

resource "aws_vpc_security_group_ingress_rule" "within" {
  security_group_id            = aws_security_group.nodes.id
  referenced_security_group_id = aws_security_group.nodes.id
  description                  = "Nodes and pods among themselves"
  ip_protocol                  = "-1"
}

resource "aws_vpc_security_group_egress_rule" "out" {
  security_group_id = aws_security_group.nodes.id
  description       = "Packages, images, EC2"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}

module "control_plane" {
  source = "../../modules/node-group"

  name              = "${var.name}-control-plane"
  control_plane     = true
  parameter         = local.parameter
  pod_cidr          = module.vpc.vpc.cidr
  subnet_ids        = values(module.vpc.subnets.private)
  security_group_id = aws_security_group.nodes.id
  instance_profile  = module.iam.node.instance_profile
  eni_tags          = module.iam.eni_tags
  instance_tags     = module.iam.instance_tags
  # What default_tags do not reach: instances, their volumes and ENIs.
  tags = { "sluice-test" = var.name }

  depends_on = [aws_iam_role_policy.join]
}

module "workers" {
  source = "../../modules/node-group"

  name              = "${var.name}-worker"
  parameter         = local.parameter
  pod_cidr          = module.vpc.vpc.cidr
  instance_type     = var.instance_type
  subnet_ids        = values(module.vpc.subnets.private)
  security_group_id = aws_security_group.nodes.id
  instance_profile  = module.iam.node.instance_profile
  eni_tags          = module.iam.eni_tags
  instance_tags     = module.iam.instance_tags
  # What default_tags do not reach: instances, their volumes and ENIs.
  tags = { "sluice-test" = var.name }

  depends_on = [aws_iam_role_policy.join]
}

output "vpc_id" {
  description = "The VPC, for the look at what is left."
  value       = module.vpc.vpc.id
}

output "kubeconfig_parameter" {
  description = "The SSM parameter that holds the kubeconfig."
  value       = "${local.parameter}/kubeconfig"
}

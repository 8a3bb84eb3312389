# An EKS cluster without the VPC CNI in a VPC of its own, whose ipamd has a role of its own (Pod Identity). `terraform/run eks`
# makes it, installs the chart, runs Kubernetes' conformance tests of networking, and takes it all away again.

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

variable "public_access_cidrs" {
  description = "Who may reach the API server: the address that you come from, as a /32."
  type        = list(string)
}

variable "instance_type" {
  description = "The nodes' type."
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

locals {
  zones = slice(data.aws_availability_zones.here.names, 0, 2)
}

module "vpc" {
  source = "../../modules/vpc"

  name         = var.name
  cluster_name = var.name
  zones        = local.zones
}

module "iam" {
  source = "../../modules/iam"

  name     = var.name
  identity = "pod-identity"
  eks      = true
  scope    = { cluster_name = var.name, vpc_arn = module.vpc.vpc.arn }
}

module "cluster" {
  source = "../../modules/eks"

  name                = var.name
  subnet_ids          = values(module.vpc.subnets.private)
  public_access_cidrs = var.public_access_cidrs
  node_role_arn       = module.iam.node.role_arn
  instance_type       = var.instance_type
  eni_tags            = module.iam.eni_tags
  instance_tags       = module.iam.instance_tags
  ipamd_role_arn      = module.iam.ipamd_role_arn
  # What default_tags do not reach: instances, their volumes and ENIs.
  tags = { "sluice-test" = var.name }
}

output "vpc_id" {
  description = "The VPC, for the look at what is left."
  value       = module.vpc.vpc.id
}

output "cluster_name" {
  description = "For aws eks update-kubeconfig."
  value       = module.cluster.cluster.name
}

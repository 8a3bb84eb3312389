# Who ipamd is: the nodes' role, or a role of its service account alone (IRSA or EKS Pod Identity).

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.0"
    }
  }
}

variable "name" {
  description = "What roles and policies are named after."
  type        = string
}

variable "identity" {
  description = "node: ipamd has the nodes' role. irsa, pod-identity: it has one of its own, and the nodes' role no right to change EC2."
  type        = string
  default     = "node"

  validation {
    condition     = contains(["node", "irsa", "pod-identity"], var.identity)
    error_message = "identity: node, irsa or pod-identity."
  }
}

variable "families" {
  description = "What pods have: ipv4, ipv6, or both."
  type        = set(string)
  default     = ["ipv4"]
}

variable "multi_nic" {
  description = "Pods may have an interface on each network card (ENABLE_MULTI_NIC): with IPv6 alone ipamd needs more rights for it."
  type        = bool
  default     = false
}

variable "scope" {
  description = "Limit ipamd to one cluster: {cluster_name, vpc_arn}; null for the whole account."
  type = object({
    cluster_name = string
    vpc_arn      = string
  })
  default = null
}

variable "oidc" {
  description = "With irsa: the cluster's OIDC provider, {arn, issuer}; the issuer without https://."
  type = object({
    arn    = string
    issuer = string
  })
  default = null
}

variable "service_account" {
  description = "Namespace and name of ipamd's service account."
  type = object({
    namespace = string
    name      = string
  })
  default = { namespace = "kube-system", name = "sluice" }
}

variable "eks" {
  description = "Nodes join an EKS cluster: they get EKS's own policies."
  type        = bool
  default     = false
}

variable "tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = {}
}

data "aws_partition" "here" {}

module "permissions" {
  source = "../ec2-permissions"

  families  = var.families
  multi_nic = var.multi_nic
  scope     = var.scope
  partition = data.aws_partition.here.partition
}

locals {
  partition = data.aws_partition.here.partition
  own_role  = var.identity != "node"
  trust = {
    irsa = jsonencode({
      Version = "2012-10-17"
      Statement = [{
        Effect    = "Allow"
        Action    = ["sts:AssumeRoleWithWebIdentity"]
        Principal = { Federated = try(var.oidc.arn, "") }
        Condition = { StringEquals = {
          "${try(var.oidc.issuer, "")}:aud" = "sts.amazonaws.com"
          "${try(var.oidc.issuer, "")}:sub" = "system:serviceaccount:${var.service_account.namespace}:${var.service_account.name}"
        } }
      }]
    })
    pod-identity = jsonencode({
      Version = "2012-10-17"
      Statement = [{
        Effect    = "Allow"
        Action    = ["sts:AssumeRole", "sts:TagSession"]
        Principal = { Service = "pods.eks.amazonaws.com" }
      }]
    })
  }
}

resource "aws_iam_policy" "ipamd" {
  name        = "${var.name}-ipamd"
  description = "The EC2 calls of sluice-ipamd"
  policy      = module.permissions.policy
  tags        = var.tags
}

resource "aws_iam_role" "node" {
  name = "${var.name}-node"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = ["sts:AssumeRole"]
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
  tags = var.tags
}

resource "aws_iam_instance_profile" "node" {
  name = "${var.name}-node"
  role = aws_iam_role.node.name
  tags = var.tags
}

resource "aws_iam_role_policy_attachment" "node" {
  for_each = toset(concat(["AmazonEC2ContainerRegistryPullOnly", "AmazonSSMManagedInstanceCore"], var.eks ? ["AmazonEKSWorkerNodePolicy"] : []))

  role       = aws_iam_role.node.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/${each.value}"
}

resource "aws_iam_role" "ipamd" {
  count = local.own_role ? 1 : 0

  name               = "${var.name}-ipamd"
  assume_role_policy = local.trust[var.identity]
  tags               = var.tags

  lifecycle {
    precondition {
      condition     = var.identity != "irsa" || var.oidc != null
      error_message = "identity irsa needs oidc: the cluster's OIDC provider."
    }
  }
}

resource "aws_iam_role_policy_attachment" "ipamd" {
  role       = local.own_role ? aws_iam_role.ipamd[0].name : aws_iam_role.node.name
  policy_arn = aws_iam_policy.ipamd.arn
}

output "node" {
  description = "The nodes': {role_arn, role_name, instance_profile}."
  value       = { role_arn = aws_iam_role.node.arn, role_name = aws_iam_role.node.name, instance_profile = aws_iam_instance_profile.node.name }
}

output "ipamd_role_arn" {
  description = "ipamd's own role; null where it has the nodes'. For the service account's annotation, or a Pod Identity association."
  value       = try(aws_iam_role.ipamd[0].arn, null)
}

output "eni_tags" {
  description = "Tags for the nodes' first ENI."
  value       = module.permissions.eni_tags
}

output "instance_tags" {
  description = "Tags for the nodes."
  value       = module.permissions.instance_tags
}

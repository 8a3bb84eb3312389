# An EKS cluster without any network add-on, with managed nodes.

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
  description = "The cluster's name."
  type        = string
}

variable "kubernetes_version" {
  description = "Kubernetes' version; EKS's default when null."
  type        = string
  default     = null
}

variable "ip_family" {
  description = "Of the cluster's Services: ipv4 or ipv6."
  type        = string
  default     = "ipv4"
}

variable "subnet_ids" {
  description = "Private subnets, in two zones at least."
  type        = list(string)
}

variable "public_access_cidrs" {
  description = "Who may reach the API server from the Internet; empty: nobody."
  type        = list(string)
  default     = []
}

variable "node_role_arn" {
  description = "The nodes' role."
  type        = string
}

variable "instance_type" {
  description = "The nodes' type."
  type        = string
  default     = "m5.large"
}

variable "nodes" {
  description = "Number of nodes."
  type        = number
  default     = 2
}

variable "eni_tags" {
  description = "Tags of the nodes' first ENI."
  type        = map(string)
  default     = {}
}

variable "instance_tags" {
  description = "Tags of the nodes."
  type        = map(string)
  default     = {}
}

variable "ipamd_role_arn" {
  description = "With Pod Identity: ipamd's role."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = {}
}

data "aws_partition" "here" {}

resource "aws_iam_role" "cluster" {
  name = "${var.name}-cluster"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = ["sts:AssumeRole"]
      Principal = { Service = "eks.amazonaws.com" }
    }]
  })
  tags = var.tags
}

resource "aws_iam_role_policy_attachment" "cluster" {
  role       = aws_iam_role.cluster.name
  policy_arn = "arn:${data.aws_partition.here.partition}:iam::aws:policy/AmazonEKSClusterPolicy"
}

resource "aws_eks_cluster" "this" {
  name     = var.name
  role_arn = aws_iam_role.cluster.arn
  version  = var.kubernetes_version
  # No VPC CNI, no kube-proxy, no CoreDNS: the last two are add-ons below.
  bootstrap_self_managed_addons = false
  tags                          = var.tags

  access_config {
    authentication_mode                         = "API"
    bootstrap_cluster_creator_admin_permissions = true
  }

  kubernetes_network_config {
    ip_family = var.ip_family
  }

  vpc_config {
    subnet_ids              = var.subnet_ids
    endpoint_private_access = true
    endpoint_public_access  = length(var.public_access_cidrs) > 0
    public_access_cidrs     = length(var.public_access_cidrs) > 0 ? var.public_access_cidrs : null
  }

  depends_on = [aws_iam_role_policy_attachment.cluster]
}

resource "aws_launch_template" "node" {
  name_prefix = "${var.name}-node-"
  tags        = var.tags

  # Pods do not reach the instance metadata: one hop, and a token.
  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_size = 30
      volume_type = "gp3"
      encrypted   = true
    }
  }

  tag_specifications {
    resource_type = "instance"
    tags          = merge(var.tags, var.instance_tags, { Name = "${var.name}-node" })
  }

  tag_specifications {
    resource_type = "volume"
    tags          = var.tags
  }

  tag_specifications {
    resource_type = "network-interface"
    tags          = merge(var.tags, var.eni_tags, { Name = "${var.name}-node" })
  }
}

resource "aws_eks_node_group" "this" {
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = "nodes"
  node_role_arn   = var.node_role_arn
  subnet_ids      = var.subnet_ids
  instance_types  = [var.instance_type]
  tags            = var.tags

  launch_template {
    id      = aws_launch_template.node.id
    version = aws_launch_template.node.latest_version
  }

  scaling_config {
    desired_size = var.nodes
    min_size     = var.nodes
    max_size     = var.nodes
  }

  update_config {
    max_unavailable = 1
  }

  # A group counts as made when its nodes are Ready, and they are that with Sluice on them: install the chart meanwhile.
  timeouts {
    create = "30m"
  }
}

resource "aws_eks_addon" "this" {
  for_each = toset(concat(["kube-proxy", "coredns"], var.ipamd_role_arn == null ? [] : ["eks-pod-identity-agent"]))

  cluster_name = aws_eks_cluster.this.name
  addon_name   = each.value
  tags         = var.tags
}

resource "aws_eks_pod_identity_association" "ipamd" {
  count = var.ipamd_role_arn == null ? 0 : 1

  cluster_name    = aws_eks_cluster.this.name
  namespace       = "kube-system"
  service_account = "sluice"
  role_arn        = var.ipamd_role_arn
  tags            = var.tags
}

output "cluster" {
  description = "The cluster: {name, endpoint, certificate_authority, issuer}."
  value = {
    name                  = aws_eks_cluster.this.name
    endpoint              = aws_eks_cluster.this.endpoint
    certificate_authority = aws_eks_cluster.this.certificate_authority[0].data
    issuer                = aws_eks_cluster.this.identity[0].oidc[0].issuer
  }
}

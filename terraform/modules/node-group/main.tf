# Machines that make themselves nodes of a kubeadm cluster: a control plane, or workers that join it.

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
  description = "What everything is named after."
  type        = string
}

variable "control_plane" {
  description = "Whether it is the control plane: one machine then."
  type        = bool
  default     = false
}

variable "parameter" {
  description = "Path of the SSM parameters by which workers learn how to join, /sluice/NAME."
  type        = string

  validation {
    condition     = can(regex("^/[A-Za-z0-9/_.-]+$", var.parameter)) && !endswith(var.parameter, "/")
    error_message = "parameter: a path that begins with a slash and does not end with one."
  }
}

variable "kubernetes_minor" {
  description = "Kubernetes' minor version."
  type        = string
  default     = "1.34"
}

variable "service_cidr" {
  description = "CIDR of Services; outside the VPC."
  type        = string
  default     = "172.20.0.0/16"
}

variable "pod_cidr" {
  description = "What kubeadm is told of pods' addresses: the VPC's CIDR."
  type        = string
}

variable "ami" {
  description = "An image of Debian 12; the newest when null."
  type        = string
  default     = null
}

variable "instance_type" {
  description = "The machines' type."
  type        = string
  default     = "m5.large"
}

variable "nodes" {
  description = "Number of machines; of a control plane, one."
  type        = number
  default     = 2
}

variable "subnet_ids" {
  description = "Private subnets."
  type        = list(string)
}

variable "security_group_id" {
  description = "The nodes' security group."
  type        = string
}

variable "instance_profile" {
  description = "The nodes' instance profile."
  type        = string
}

variable "eni_tags" {
  description = "Tags of the first ENI."
  type        = map(string)
  default     = {}
}

variable "instance_tags" {
  description = "Tags of the machines."
  type        = map(string)
  default     = {}
}

variable "tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = {}
}

data "aws_region" "here" {}

data "aws_ami" "debian" {
  most_recent = true
  owners      = ["136693071363"]

  filter {
    name   = "name"
    values = ["debian-12-amd64-*"]
  }
}

locals {
  bootstrap = templatefile("${path.module}/bootstrap.sh.tftpl", {
    control_plane    = var.control_plane
    kubernetes_minor = var.kubernetes_minor
    parameter        = var.parameter
    pod_cidr         = var.pod_cidr
    region           = data.aws_region.here.region
    service_cidr     = var.service_cidr
  })
  size = var.control_plane ? 1 : var.nodes
}

resource "aws_launch_template" "this" {
  name_prefix            = "${var.name}-"
  image_id               = coalesce(var.ami, data.aws_ami.debian.id)
  instance_type          = var.instance_type
  user_data              = base64encode(local.bootstrap)
  update_default_version = true
  tags                   = var.tags

  iam_instance_profile {
    name = var.instance_profile
  }

  # Pods do not reach the instance metadata: one hop, and a token.
  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  network_interfaces {
    device_index          = 0
    security_groups       = [var.security_group_id]
    delete_on_termination = true
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_size           = 20
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }

  tag_specifications {
    resource_type = "instance"
    tags          = merge(var.tags, var.instance_tags, { Name = var.name })
  }

  tag_specifications {
    resource_type = "volume"
    tags          = var.tags
  }

  tag_specifications {
    resource_type = "network-interface"
    tags          = merge(var.tags, var.eni_tags, { Name = var.name })
  }
}

resource "aws_autoscaling_group" "this" {
  name                = var.name
  min_size            = local.size
  max_size            = local.size
  desired_capacity    = local.size
  vpc_zone_identifier = var.control_plane ? [var.subnet_ids[0]] : var.subnet_ids

  launch_template {
    id      = aws_launch_template.this.id
    version = aws_launch_template.this.latest_version
  }

  dynamic "tag" {
    for_each = var.tags

    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = false
    }
  }
}

output "bootstrap" {
  description = "What a machine runs when it starts."
  value       = local.bootstrap
}

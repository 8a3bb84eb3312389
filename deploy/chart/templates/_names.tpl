{{- define "sluice.name" -}}
{{- default (default "sluice" .Values.nameOverride) .Values.fullnameOverride | trunc 57 | trimSuffix "-" -}}
{{- end -}}

{{- define "sluice.serviceAccount" -}}
{{- default (include "sluice.name" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "sluice.image" -}}
{{- with .Values.image -}}
{{- .override | default (printf "%s:%s" .repository (.tag | default $.Chart.AppVersion)) -}}
{{- end -}}
{{- end -}}

{{- define "sluice.labels" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "sluice.selector" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Variables of a map, in the order of their names. */}}
{{- define "sluice.env" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{/* Where the daemons serve introspection, if not at their usual ports: for those who ask them. .env: variables that are said anyway. */}}
{{- define "sluice.addresses" -}}
{{- $found := dict -}}
{{- $env := .env -}}
{{- with .root.Values -}}
{{- range $name, $from := dict "INTROSPECTION_BIND_ADDRESS" .env "SLUICE_POLICY_INTROSPECTION_ADDRESS" .policyd.env "SLUICE_PROXY_INTROSPECTION_ADDRESS" .proxy.env -}}
{{- with get $from $name }}{{ if not (hasKey $env $name) }}{{ $_ := set $found $name . }}{{ end }}{{ end -}}
{{- end -}}
{{- end -}}
{{- include "sluice.env" $found -}}
{{- end -}}

{{/* What every daemon of a node is told. */}}
{{- define "sluice.place" -}}
- name: MY_NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
- name: SLUICE_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{- with .Values.apiServer }}{{ if .host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .port | quote }}
{{- end }}{{ end }}
{{- end -}}

{{/* Not empty where ipamd may be told to annotate pods, on some nodes at least: what is true to Go is true to ipamd. A value from elsewhere
(valueFrom) may say so. */}}
{{- define "sluice.annotates" -}}
{{- $true := list "1" "t" "T" "true" "TRUE" "True" -}}
{{- $said := list (get .Values.env "ANNOTATE_POD_IP") -}}
{{- range .Values.nodeGroups }}{{ $said = append $said (get (default dict .env) "ANNOTATE_POD_IP") }}{{ end -}}
{{- range .Values.extraEnv }}{{ if eq .name "ANNOTATE_POD_IP" }}{{ $said = append $said (default "true" .value) }}{{ end }}{{ end -}}
{{- range $said }}{{ if has (. | toString | trim) $true }}true{{ end }}{{ end -}}
{{- end -}}

{{/* The port that probes ask: of the only address of .names, where one is for that alone; else of introspection, or of metrics where
that is switched off. .env: the container's variables; .names and .ports: the variable of each address, and its default port. */}}
{{- define "sluice.port" -}}
{{- if eq (len .names) 1 -}}
{{- $address := get .env (first .names) -}}
{{- if $address -}}{{ $address | toString | splitList ":" | last }}{{- else -}}{{ first .ports }}{{- end -}}
{{- else -}}
{{- $off := ternary 1 0 (eq (get .env "DISABLE_INTROSPECTION" | toString | lower) "true") -}}
{{- if and (eq $off 1) (eq (get .env "DISABLE_METRICS" | toString | lower) "true") -}}
{{- fail (printf "%s: probes need one of its two ports: leave DISABLE_INTROSPECTION or DISABLE_METRICS false" .container) -}}
{{- end -}}
{{- $address := get .env (index .names $off) -}}
{{- if $address -}}{{ $address | toString | splitList ":" | last }}{{- else -}}{{ index .ports $off }}{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sluice.probes" -}}
{{- $port := include "sluice.port" . -}}
startupProbe:
  httpGet: {host: 127.0.0.1, path: /livez, port: {{ $port }}}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  {{- if .liveness }}
  {{- toYaml .liveness | nindent 2 }}
  {{- else }}
  httpGet: {host: 127.0.0.1, path: /livez, port: {{ $port }}}
  timeoutSeconds: {{ .root.Values.livenessProbeTimeoutSeconds }}
  periodSeconds: 10
  failureThreshold: 6
  {{- end }}
readinessProbe:
  {{- if .readiness }}
  {{- toYaml .readiness | nindent 2 }}
  {{- else }}
  httpGet: {host: 127.0.0.1, path: /readyz, port: {{ $port }}}
  timeoutSeconds: {{ .root.Values.readinessProbeTimeoutSeconds }}
  periodSeconds: 5
  failureThreshold: 2
  {{- end }}
{{- end -}}

{{/* A container's security context: these capabilities and nothing else. .profile: a seccomp profile of ours, where .root has it;
.more.seccompProfile goes before it, as a whole. */}}
{{- define "sluice.security" -}}
{{- $context := dict "runAsUser" 0 "runAsGroup" 0 "readOnlyRootFilesystem" true "allowPrivilegeEscalation" false -}}
{{- if not (hasKey (default dict .more) "seccompProfile") -}}
{{- $profile := dict "type" "RuntimeDefault" -}}
{{- if .profile }}{{ if include "sluice.ownProfiles" .root }}{{ $profile = dict "type" "Localhost" "localhostProfile" (printf "sluice/%s.json" .profile) }}{{ end }}{{ end -}}
{{- $_ := set $context "seccompProfile" $profile -}}
{{- end -}}
{{- $capabilities := dict "drop" (list "ALL") -}}
{{- with .capabilities }}{{ $_ := set $capabilities "add" . }}{{ end -}}
{{- $_ := set $context "capabilities" $capabilities -}}
{{- toYaml (mustMergeOverwrite $context (deepCopy (default dict .more))) -}}
{{- end -}}

{{/* Puts seccomp profiles where the kubelet finds them: runtimes read a container's when they make it. .root, .profiles. */}}
{{- define "sluice.profiles" -}}
- name: seccomp
  image: {{ include "sluice.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [/usr/local/bin/sluice, install, seccomp{{ range .profiles }}, --profile, {{ . }}{{ end }}]
  securityContext:
    {{- include "sluice.security" (dict "more" dict) | nindent 4 }}
  volumeMounts:
    - {name: seccomp, mountPath: /var/lib/kubelet/seccomp}
{{- end -}}

{{- define "sluice.profilesVolume" -}}
- {name: seccomp, hostPath: {path: {{ .Values.seccomp.kubeletDirectory }}, type: DirectoryOrCreate}}
{{- end -}}

{{/* The node's directory for files of flows and records; empty where there is none, as in values of a release of before (--reuse-values). */}}
{{- define "sluice.logs" -}}
{{- with .Values.logs }}{{ .hostPath }}{{ end -}}
{{- end -}}

{{- define "sluice.logsMount" -}}
- {name: logs, mountPath: /var/log/sluice}
{{- end -}}

{{- define "sluice.logsVolume" -}}
- {name: logs, hostPath: {path: {{ include "sluice.logs" . | quote }}, type: DirectoryOrCreate}}
{{- end -}}

{{/* What the pods of all DaemonSets have in common. .root, .component, .automount. */}}
{{- define "sluice.metadata" -}}
labels:
  {{- include "sluice.selector" . | nindent 2 }}
  {{- with .root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .root.Values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "sluice.pod" -}}
serviceAccountName: {{ include "sluice.serviceAccount" .root }}
automountServiceAccountToken: {{ .automount }}
hostNetwork: true
priorityClassName: {{ .root.Values.priorityClassName }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Not empty where our own seccomp profiles are used. Values of a release of before (--reuse-values) have none of it. */}}
{{- define "sluice.ownProfiles" -}}
{{- with .Values.seccomp }}{{ if .localhost }}true{{ end }}{{ end -}}
{{- end -}}

{{/* Not empty where the API server has admission policies (v1 since 1.30) and one is wanted. Values of a release of before (--reuse-values) have
none of it. */}}
{{- define "sluice.admission" -}}
{{- with .Values.admission -}}
{{- if and (or .ownObjects .faults) (not $.Values.uninstall) (semverCompare ">=1.30-0" $.Capabilities.KubeVersion.Version) -}}
true
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The cluster's name, if ipamd is told one: by env or extraEnv, or for some nodes by nodeGroups. */}}
{{- define "sluice.clusterName" -}}
{{- $said := list (get .Values.env "CLUSTER_NAME") -}}
{{- range .Values.nodeGroups }}{{ $said = append $said (get (default dict .env) "CLUSTER_NAME") }}{{ end -}}
{{- range .Values.extraEnv }}{{ if eq .name "CLUSTER_NAME" }}{{ $said = append $said (default "from elsewhere" .value) }}{{ end }}{{ end -}}
{{- range $said }}{{ . | toString | trim }}{{ end -}}
{{- end -}}

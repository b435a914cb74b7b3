{{/* Names and labels: NAME is what this release's objects begin with. */}}
{{- define "speakerd.name" -}}
{{- if contains "speakerd" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-speakerd" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{- define "speakerd.selector" -}}
app.kubernetes.io/name: speakerd
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "speakerd.labels" -}}
{{ include "speakerd.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{/* image (dict "root" . "image" .Values.images.node) */}}
{{- define "speakerd.image" -}}
{{ .root.Values.images.registry }}{{ .image.repository }}:{{ .image.tag }}{{ with .image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- define "speakerd.certificate" -}}
{{ if eq .Values.tls.mode "cert-manager" }}{{ include "speakerd.name" . }}-controlplane-tls{{ else }}{{ .Values.tls.controlplaneSecret }}{{ end }}
{{- end }}

{{/* Every container of ours: no root, nothing to write into, no capabilities. */}}
{{- define "speakerd.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "speakerd.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Loading an engine from a cold disk takes its time: five minutes to start, then half a minute to be found hanging. */}}
{{- define "speakerd.probes" -}}
startupProbe:
  httpGet: {path: /health/started, port: metrics}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /health/live, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /health/ready, port: metrics}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
{{- end }}

{{/* Settings by their names, as variables. */}}
{{- define "speakerd.settings" -}}
{{- range $name, $value := . }}
- name: SPEAKERD_{{ upper $name }}
  value: {{ if kindIs "string" $value }}{{ $value | quote }}{{ else }}{{ toJson $value | quote }}{{ end }}
{{- end }}
{{- end }}

{{/* What cannot work is refused here, with the value to change. */}}
{{- define "speakerd.check" -}}
{{- $pods := 0 }}{{ $roles := list }}
{{- range $group := .Values.controlplane.groups }}
{{- if $group }}{{ $pods = add $pods $group.replicas }}{{ $roles = concat $roles $group.roles }}{{ end }}
{{- end }}
{{- range list "grpc" "http" "worker" }}
{{- if not (has . $roles) }}{{ fail (printf "controlplane.groups: no group has the role %s" .) }}{{ end }}
{{- end }}
{{- if and (gt $pods 1) (not .Values.secrets.settings) }}
{{- fail "controlplane.groups: more than one pod wants PostgreSQL and Redis: name a secret with database_url, redis_url and kek in secrets.settings" }}
{{- end }}
{{- if and (gt $pods 1) (not .Values.controlplane.persistence.existingClaim) (ne .Values.controlplane.persistence.accessMode "ReadWriteMany") }}
{{- fail "controlplane.groups: more than one pod shares the data folder: set controlplane.persistence.accessMode to ReadWriteMany" }}
{{- end }}
{{- if and (eq .Values.tls.mode "cert-manager") (not .Values.tls.issuer.name) }}{{ fail "tls.issuer.name: name cert-manager's issuer" }}{{ end }}
{{- if and (contains "cuda" .Values.node.device) (not (hasKey (.Values.node.resources.limits | default dict) "nvidia.com/gpu")) }}
{{- fail "node.resources.limits: a node on cuda wants nvidia.com/gpu" }}
{{- end }}
{{- end }}

{{- define "router-ml.name" -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}-router-ml
{{- end }}

{{- define "router-ml.selector" -}}
app.kubernetes.io/name: router-ml
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "router-ml.labels" -}}
{{ include "router-ml.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* Name of everything in the release. */}}
{{- define "carillon-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "carillon-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "carillon-operator.labels" -}}
{{ include "carillon-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "carillon-operator.serviceAccountName" -}}
{{- default (include "carillon-operator.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{/* The watched namespaces, comma-separated. */}}
{{- define "carillon-operator.namespaces" -}}
{{- default (list .Release.Namespace) .Values.watchNamespaces | join "," -}}
{{- end -}}

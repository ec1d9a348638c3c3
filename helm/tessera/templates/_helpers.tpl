{{/* The name of the release's objects. */}}
{{- define "tessera.fullname" -}}
{{- $release := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- .Values.fullnameOverride | default $release | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{/* What selects the pods of a component; takes a list of the root and the component. */}}
{{- define "tessera.selectorLabels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* The labels of every object; takes a list of the root and the component. */}}
{{- define "tessera.labels" -}}
{{- $root := index . 0 -}}
{{ include "tessera.selectorLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "tessera.serviceAccountName" -}}
{{- $absent := ternary (include "tessera.fullname" .) "default" .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default $absent -}}
{{- end }}

{{- define "tessera.secretName" -}}
{{- .Values.existingSecret | default (include "tessera.fullname" .) -}}
{{- end }}

{{/* Environment of every process: settings from the config map, credentials from the secret. */}}
{{- define "tessera.environment" -}}
envFrom:
  - configMapRef:
      name: {{ include "tessera.fullname" . }}
env:
  - name: TESSERA_BROKER
    valueFrom:
      secretKeyRef:
        name: {{ include "tessera.secretName" . }}
        key: broker-url
  - name: AWS_ACCESS_KEY_ID
    valueFrom:
      secretKeyRef:
        name: {{ include "tessera.secretName" . }}
        key: aws-access-key-id
        optional: true
  - name: AWS_SECRET_ACCESS_KEY
    valueFrom:
      secretKeyRef:
        name: {{ include "tessera.secretName" . }}
        key: aws-secret-access-key
        optional: true
{{- end }}

{{/* Annotations of every pod: a change of settings or credentials replaces the pods. */}}
{{- define "tessera.podAnnotations" -}}
checksum/config: {{ include (print .Template.BasePath "/configmap.yaml") . | sha256sum }}
checksum/secret: {{ include (print .Template.BasePath "/secret.yaml") . | sha256sum }}
{{- end }}

{{/* What every pod is allowed: nothing but to run. */}}
{{- define "tessera.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: { type: RuntimeDefault }
{{- end }}

{{/* And every container. */}}
{{- define "tessera.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end }}

{{- define "tessera.probes" -}}
livenessProbe:
  httpGet: { path: /livez, port: health }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: { path: /readyz, port: health }
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}

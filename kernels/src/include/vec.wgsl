{% macro vec(width, type) %}{% if width > 1 %}vec4<{{ type }}>{% else %}{{ type }}{% endif %}{% endmacro %}

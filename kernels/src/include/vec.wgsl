{% macro vec(width, type) %}{% if width == 4 %}vec4<{{ type }}>{% else %}{{ type }}{% endif %}{% endmacro %}

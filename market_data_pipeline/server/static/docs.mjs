// The routes of this server, by Swagger UI. It sends requests to this server, and to no other.

/* global SwaggerUIBundle */
SwaggerUIBundle({
  url: '/openapi.json',
  dom_id: '#routes',
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null, // its own is on another host
  onComplete: () => { document.documentElement.dataset.loaded = 'yes' },
})

INSERT INTO assets (id, type, "createdAt", "isVisible", "isArchived", "isOffline", "isExternal", "deletedAt", thumbhash, "encodedVideoPath") VALUES
  ('00000000-0000-0000-0000-000000000001', 'IMAGE', to_timestamp(1000), true, false, false, false, NULL, '\x01', NULL),
  ('00000000-0000-0000-0000-000000000002', 'VIDEO', to_timestamp(2000), true, false, false, false, NULL, '\x01', '/data/x.mp4'),
  ('00000000-0000-0000-0000-000000000003', 'AUDIO', to_timestamp(3000), true, false, false, false, NULL, NULL, NULL),
  ('00000000-0000-0000-0000-000000000004', 'HOLOGRAM', to_timestamp(4000), true, false, false, false, NULL, NULL, NULL),
  ('00000000-0000-0000-0000-000000000005', 'IMAGE', to_timestamp(5000), true, false, false, false, NULL, NULL, NULL);
INSERT INTO asset_files (id, "assetId", type) VALUES
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000001', 'preview'),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000001', 'thumbnail'),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000001', 'fullsize'),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000002', 'preview'),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000002', 'thumbnail'),
  (gen_random_uuid(), '00000000-0000-0000-0000-000000000002', 'fullsize');
INSERT INTO asset_job_status ("assetId", "metadataExtractedAt", "facesRecognizedAt", "duplicatesDetectedAt", "previewAt", "thumbnailAt") VALUES
  ('00000000-0000-0000-0000-000000000001', now(), now(), now(), now(), now()),
  ('00000000-0000-0000-0000-000000000002', now(), now(), now(), now(), now()),
  ('00000000-0000-0000-0000-000000000003', now(), NULL, NULL, NULL, NULL),
  ('00000000-0000-0000-0000-000000000004', now(), NULL, NULL, NULL, NULL),
  ('00000000-0000-0000-0000-000000000005', now(), NULL, NULL, NULL, NULL);
INSERT INTO smart_search ("assetId") VALUES ('00000000-0000-0000-0000-000000000001'), ('00000000-0000-0000-0000-000000000002');
INSERT INTO system_metadata (key, value) VALUES
  ('system-config', '{"machineLearning": {"facialRecognition": {"enabled": false}}, "oauth": {"clientSecret": "s"}}');
INSERT INTO migrations (id) SELECT generate_series(1, 200);
INSERT INTO kysely_migrations (name) VALUES ('first');
